package recovery

import (
	"bytes"

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
		if err := f.shrink(last.End(), u.target); err != nil {
			return &RepairError{Step: "truncate", Page: last, Err: err}
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
	d.forget(u.span())
	d.nowClosed(u.span())
	f.dropImages(d, u.span())
	if err := f.engine.closed(u.change.Close); err != nil {
		f.emitFailure("journal", u.span(), err) // the ledger has it: they are closed all the same
	}
	return nil
}

// shrink takes back what a whole-page write of the tail page added to the file:
// it ends with that page then. A file of any other size was changed since.
func (f *File) shrink(pageEnd, target int64) error {
	if pageEnd <= target {
		return nil
	}
	st, err := f.below.Stat()
	if err != nil || st.Size != pageEnd {
		return err
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
		if f.readsBack(m) == nil {
			continue
		}
		// The poison was on no list yet when the page was written, so that the
		// write could not clear it; the read has listed it (kernel facts, 2).
		_, err := f.below.Pwrite(m.content, m.page.Off)
		if err == nil {
			err = f.below.Sync(false)
		}
		if err == nil {
			err = f.readsBack(m)
		}
		if err != nil {
			return &RepairError{Step: "read-back", Page: m.page, Err: err}
		}
		if err := f.shrink(m.page.End(), m.intent.End); err != nil {
			return &RepairError{Step: "truncate", Page: m.page, Err: err}
		}
	}
	return nil
}

// readsBack fails if the medium does not hold what was written.
func (f *File) readsBack(m *mend) error {
	inFile := m.page.Intersect(ranges.Between(0, m.intent.End))
	got := make([]byte, inFile.Len)
	n, err := f.below.Pread(got, inFile.Off)
	if err == nil && !bytes.Equal(got[:n], m.content[:inFile.Len]) {
		err = unix.EIO
	}
	return err
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
		return err
	}
	const between = 1024 // intents between two checkpoints
	n := uint64(len(ids))
	if after := e.closes.Add(n); (after-n)/between != after/between {
		return e.checkpoint()
	}
	return nil
}

// leaveOpen remembers a repair that could not be finished: nobody writes its
// pages before it is.
func (f *File) leaveOpen(d *damage, u *unfinished) {
	f.engine.pin(f.ino, d.key)
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
	if f.engine.pins.Load() == 0 {
		return nil
	}
	for {
		d.mu.Lock()
		if len(d.open) == 0 {
			d.openPages = ranges.Set{}
			d.mu.Unlock()
			f.engine.unpin(d.key)
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

// tryFinishOpen is finishOpen for those who can do without: until it works, the
// tail page's repair may show in the file's size.
func (f *File) tryFinishOpen() {
	d := f.ino.damage.Load()
	if d == nil || f.engine.pins.Load() == 0 {
		return
	}
	f.ino.mu.Lock()
	defer f.ino.mu.Unlock()
	f.ino.writes.Add(1)
	_ = f.finishOpen(d) // whoever writes there gets the error
}

// nowClosed forgets the intents that had to stay open until the pages of r were
// repaired.
func (d *damage) nowClosed(r ranges.Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for page := range d.unclosed {
		if r.Contains(ranges.Page(page)) {
			delete(d.unclosed, page)
		}
	}
}
