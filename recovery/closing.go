package recovery

import (
	"sync"
	"sync/atomic"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// closings are repairs of which all is done but that the ledger's disk has the end
// (step 4): it is asked once for many. Their pages were overwritten whole, and are
// durable. A crash leaves the intents open, and replay finds what their sums say. So
// that it does, nobody changes these pages before the intents are closed.
type closings struct {
	n   atomic.Int64 // intents in waiting and underWay
	end sync.Mutex   // held over a transaction; there is one at a time

	mu       sync.Mutex // guards the two below; taken after end
	waiting  closing
	underWay closing // in the transaction
}

// closing is intents to be closed, and their pages by file.
type closing struct {
	intents []uint64
	pages   map[string]*ranges.Set
}

const (
	closeMany = 64   // intents, for which the disk is asked
	closeMost = 1024 // intents, beyond which it is waited for
)

func (c *closing) add(key string, pages []ranges.Range, intents []uint64) {
	if c.pages == nil {
		c.pages = map[string]*ranges.Set{}
	}
	if c.pages[key] == nil {
		c.pages[key] = ranges.Of()
	}
	for _, r := range pages {
		c.pages[key].Add(r)
	}
	c.intents = append(c.intents, intents...)
}

func (c *closing) has(key string, r ranges.Range) bool {
	pages := c.pages[key]
	return pages != nil && pages.Overlaps(r)
}

// isClosing reports whether intents of pages touched by r wait to be closed.
func (e *Engine) isClosing(key string, r ranges.Range) bool {
	c := &e.closings
	if c.n.Load() == 0 {
		return false
	}
	r = r.Widen(ranges.PageSize)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting.has(key, r) || c.underWay.has(key, r)
}

// mayWait reports whether replay can do without the end of the repair.
func (f *File) mayWait(u *unfinished) bool {
	if u.late || u.shared || f.ino.isShared() || f.ino.shares != u.shares {
		return false
	}
	left := map[uint64]int{} // pages of an intent that the medium has refused
	for _, m := range u.mends {
		if m.intent.Image != nil || m.was != nil {
			return false
		}
		if _, ok := left[m.intent.ID]; !ok {
			left[m.intent.ID] = len(m.intent.Sums)
		}
		left[m.intent.ID]--
	}
	for _, id := range u.change.Close {
		if n, plain := left[id]; !plain || n > 0 {
			return false // of a page that was owed an image, or that the next write may change
		}
	}
	return true
}

// closeLater tells the ledger of the end of a repair, and lets others wait for its
// disk. The caller holds the inode exclusively.
func (e *Engine) closeLater(key string, u *unfinished) error {
	c := &e.closings
	if c.n.Load() >= closeMost {
		if err := e.endClosings(); err != nil {
			return err
		}
	}
	if err := e.Ledger.Record(u.change); err != nil {
		return err
	}
	c.mu.Lock()
	c.waiting.add(key, u.pages(), u.change.Close)
	c.n.Add(int64(len(u.change.Close)))
	many := len(c.waiting.intents) >= closeMany
	c.mu.Unlock()
	if many {
		e.enders.begin(func() {
			if err := e.endClosings(); err != nil {
				e.tellFailure("ledger", err)
			}
		})
	}
	return nil
}

// endClosing is endClosings where pages touched by r are among them.
func (e *Engine) endClosing(key string, r ranges.Range) error {
	if !e.isClosing(key, r) {
		return nil
	}
	if err := e.endClosings(); err != nil {
		return &RepairError{Step: "ledger", Page: r, Err: err}
	}
	return nil
}

// endClosings returns nil when all repairs that were waiting have their end on disk.
func (e *Engine) endClosings() error {
	c := &e.closings
	c.end.Lock()
	defer c.end.Unlock()
	c.mu.Lock()
	c.underWay, c.waiting = c.waiting, closing{}
	ended := c.underWay.intents
	c.mu.Unlock()
	if len(ended) == 0 {
		return nil
	}
	err := e.Ledger.Flush()
	c.mu.Lock()
	if err != nil {
		for key, pages := range c.underWay.pages {
			c.waiting.add(key, pages.Slice(), nil)
		}
		c.waiting.intents = append(c.waiting.intents, ended...)
	} else {
		c.n.Add(-int64(len(ended)))
	}
	c.underWay = closing{}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.closed(ended); err != nil { // the ledger has it: they are closed all the same
		e.tellFailure("journal", err)
	}
	return nil
}
