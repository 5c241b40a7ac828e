package recovery

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// oneAtATime is work that is done while the engine is at work, by one goroutine at most.
type oneAtATime struct {
	mu       sync.Mutex // guards the two below
	underWay bool
	over     bool
	all      sync.WaitGroup
}

// begin runs work on a goroutine, unless one runs already. end waits for it.
func (c *oneAtATime) begin(work func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.underWay || c.over {
		return
	}
	c.underWay = true
	c.all.Go(func() {
		work()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.underWay = false
	})
}

// end returns when none runs, and sees to it that none begins.
func (c *oneAtATime) end() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.all.Wait()
}

// closed tells the journal that intents are closed, lazily: the ledger's word
// counts until the checkpoint. That may write the journal anew, for which nobody
// waits: callers hold an inode.
func (e *Engine) closed(ids []uint64) error {
	if err := e.Journal.Close(ids...); err != nil {
		return err
	}
	const between = 1024 // intents between two checkpoints
	n := uint64(len(ids))
	if after := e.closes.Add(n); (after-n)/between != after/between {
		e.checkpoints.begin(func() {
			if err := e.checkpoint(); err != nil {
				e.tellFailure("journal", err)
			}
		})
	}
	return nil
}

// tellFailure tells that the state disk refused a step that is for many repairs.
func (e *Engine) tellFailure(step string, err error) {
	e.Events.Emit(event.Event{Event: event.RepairFailed, FS: e.FS, Action: step, Error: err.Error(), Next: nextAfter(step)})
}

// checkpoint lets the journal and the ledger forget intents that are closed.
func (e *Engine) checkpoint() error {
	closed, err := e.Journal.Checkpoint()
	for _, image := range e.Journal.TakeUnread() {
		e.tellUnread(image)
	}
	if err != nil {
		return fmt.Errorf("checkpoint of the journal: %w", err)
	}
	e.at.Hit(failpoint.LedgerCheckpoint)
	e.Ledger.Forget(closed...)
	return nil
}

// tellUnread tells of an image that the state disk has lost.
func (e *Engine) tellUnread(image journal.Unread) {
	ev := event.Event{Event: event.RepairFailed, FS: e.FS, Ino: image.File.Ino, Offset: image.Page, Length: ranges.PageSize,
		Action: "journal", Error: fmt.Sprintf("the image of the page can't be read: %v", image.Err),
		Next: "see the state disk; the journal that has the image, if any, stays as " + image.Kept + ": remove it when it is of no use"}
	if fd, err := fileid.Open(e.Root, image.File, "", unix.O_PATH); err == nil {
		ev.Path = fileid.Path(e.Root, fd)
		_ = unix.Close(fd) // nothing was written
	}
	e.Events.Emit(ev)
}
