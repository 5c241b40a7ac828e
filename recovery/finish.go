package recovery

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// unfinished is a repair whose pages are written and whose intents are open.
type unfinished struct {
	target int64 // the size that the file must have at most, if the pages reached past it
	mends  []*mend
	change ledger.Change
}

// finish does steps 3 and 4. It may be called again after it failed.
func (f *File) finish(d *damage, u *unfinished) error {
	if n := len(u.mends); n > 0 {
		last := u.mends[n-1].page
		if last.End() > u.target {
			if err := f.shrink(u.target); err != nil {
				return &RepairError{Step: "truncate", Page: last, Err: err}
			}
		}
		if err := f.settle(u.mends); err != nil {
			return err
		}
	}
	f.engine.reached(pagesDurable)
	if err := f.engine.Ledger.Commit(u.change); err != nil {
		f.emitFailure("ledger", u.span(), err)
		return &RepairError{Step: "ledger", Page: u.span(), Err: err}
	}
	f.engine.reached(intentClosed)
	d.apply(u.change)
	for _, m := range u.mends {
		d.forget(m.page)
		f.dropImages(d, m.page)
	}
	return f.engine.closed(u.change.Close)
}

// shrink takes back what a whole-page write of the tail page added to the file.
func (f *File) shrink(target int64) error {
	st, err := f.below.Stat()
	if err != nil {
		return err
	}
	if st.Size <= target {
		return nil
	}
	return f.below.Truncate(target)
}

// settle makes the pages durable, restores the time of a repair of ours, and
// reads back the pages of which something was salvaged.
func (f *File) settle(mends []*mend) error {
	if in := mends[0].intent; in.RestoreMtime {
		if err := f.below.SetMtime(in.Mtime); err != nil {
			return &RepairError{Step: "sync", Page: mends[0].page, Err: err}
		}
	}
	if err := f.below.Sync(false); err != nil {
		return &RepairError{Step: "sync", Page: mends[0].page, Err: err}
	}
	for _, m := range mends {
		if m.before == nil {
			continue
		}
		inFile := m.page.Intersect(ranges.Between(0, m.intent.End))
		got := make([]byte, inFile.Len)
		n, err := f.below.Pread(got, inFile.Off)
		if err != nil || !bytes.Equal(got[:n], m.content[:inFile.Len]) {
			return &RepairError{Step: "read-back", Page: m.page, Err: errors.Join(err, unix.EIO)}
		}
	}
	return nil
}

func (u *unfinished) span() ranges.Range {
	if len(u.mends) == 0 {
		return ranges.Range{}
	}
	return ranges.Between(u.mends[0].page.Off, u.mends[len(u.mends)-1].page.End())
}

// closed tells the journal that intents are closed, lazily: the ledger's word
// counts until the checkpoint.
func (e *Engine) closed(ids []uint64) error {
	if err := e.Journal.Close(ids...); err != nil {
		return &RepairError{Step: "journal", Err: err}
	}
	const between = 1024 // intents between two checkpoints
	if before := e.closes.Add(uint64(len(ids))) - uint64(len(ids)); before/between != (before+uint64(len(ids)))/between {
		if err := e.checkpoint(); err != nil {
			return &RepairError{Step: "journal", Err: fmt.Errorf("checkpoint: %w", err)}
		}
	}
	return nil
}

// leaveOpen remembers a repair that could not be finished: nobody writes its
// pages before it is.
func (d *damage) leaveOpen(u *unfinished) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, u)
	for _, m := range u.mends {
		d.openPages.Add(m.page)
	}
}

// finishOpen finishes repairs that could not be finished before. The caller
// holds the inode exclusively.
func (f *File) finishOpen(d *damage) error {
	for {
		d.mu.Lock()
		if len(d.open) == 0 {
			d.openPages = ranges.Set{}
			d.mu.Unlock()
			return nil
		}
		u := d.open[0]
		d.mu.Unlock()
		if err := f.finish(d, u); err != nil {
			return err
		}
		d.mu.Lock()
		d.open = d.open[1:]
		d.mu.Unlock()
	}
}
