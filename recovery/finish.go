package recovery

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// unfinished is a repair whose pages are written and whose intents are open.
type unfinished struct {
	target int64 // the size that the file must have at most, if the pages reached past it
	mends  []*mend
	change ledger.Change
	shares uint64 // the inode's, when the pages were written
	shared bool   // the file was shared then
	late   bool   // others may have written the file since
}

// finish does steps 3 and 4. It may be called again after it failed. If the
// file was shared since the pages were written, they may hold newer data.
func (f *File) finish(d *damage, u *unfinished) error {
	if n := len(u.mends); n > 0 {
		ours := f.ino.shares == u.shares
		if ours {
			if err := f.claim(u.mends); err != nil {
				return f.failed(u, err)
			}
		}
		if err := f.cutBack(d, u, u.mends[n-1], ours); err != nil {
			return f.failed(u, err)
		}
		f.engine.at.Hit(failpoint.PagesCutBack)
		if err := f.settle(d, u, ours); err != nil {
			return f.failed(u, err)
		}
	}
	f.engine.at.Hit(failpoint.PagesDurable)
	f.dropImagesNow(d, u.pages()...) // while the intent is open: it has what is needed of them
	waits := f.mayWait(u)
	if err := f.close(d, u, waits); err != nil {
		f.emitFailure("ledger", u.span(), err)
		return &RepairError{Step: "ledger", Page: u.span(), Err: err}
	}
	f.engine.at.Hit(failpoint.IntentClosed)
	d.recorded()
	for _, pages := range u.pages() {
		d.forget(pages)
		d.nowClosed(pages)
	}
	if waits {
		return nil
	}
	if err := f.engine.closed(u.change.Close); err != nil {
		f.emitFailure("journal", u.span(), err) // the ledger has it: they are closed all the same
	}
	return nil
}

// close is step 4.
func (f *File) close(d *damage, u *unfinished, waits bool) error {
	if waits {
		return f.engine.closeLater(d.key, u)
	}
	return f.engine.Ledger.Commit(u.change)
}

// failed tells which step an unfinished repair waits for.
func (f *File) failed(u *unfinished, err error) error {
	var at *RepairError
	if errors.As(err, &at) {
		f.emitFailure(at.Step, u.span(), err)
	}
	return err
}

// cutBack is shrink after the repair of the last page, unless that would cut
// off what is not ours.
func (f *File) cutBack(d *damage, u *unfinished, m *mend, ours bool) error {
	last, target := m.page, u.target
	if last.End() <= target {
		return nil
	}
	if !ours {
		if f.ino.isShared() {
			return &RepairError{Step: "share", Page: last, Err: errShared}
		}
		added := make([]byte, last.End()-target)
		n, err := f.below.Pread(added, target)
		if err != nil {
			return &RepairError{Step: "truncate", Page: last, Err: fmt.Errorf("looking whether what lies behind the end is ours: %w", err)}
		}
		if !isZero(added[:n]) {
			return nil
		}
	}
	for try := 1; ; try++ {
		err := f.shrink(last.End(), target)
		if err == nil {
			return nil
		}
		// No part of a page is zeroed that is bad again (lab facts, "The last page of a file").
		if !ours || try == tries || !mayBePoison(err) || f.below.Corroborate(last) == media.Clear {
			return &RepairError{Step: "truncate", Page: last, Err: err}
		}
		if err := f.writeAgain(d, u, m); err != nil {
			return err
		}
	}
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
// reads back the pages of which something was salvaged, those on nobody's list, which
// alone could say that the write has cleared them, or all.
func (f *File) settle(d *damage, u *unfinished, ours bool) error {
	if err := f.makeDurable(u, u.mends[0], ours); err != nil {
		return err
	}
	for _, m := range u.mends {
		if m.before == nil && !f.engine.VerifyWrites && !d.isUnsure(m.page) {
			continue
		}
		if err := f.prove(d, u, m, ours); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) makeDurable(u *unfinished, m *mend, ours bool) error {
	if in := m.intent; in.RestoreMtime && ours && !u.late {
		if err := f.below.SetMtime(in.Mtime); err != nil {
			return &RepairError{Step: "sync", Page: m.page, Err: err}
		}
	}
	if err := f.below.Sync(false); err != nil {
		return &RepairError{Step: "sync", Page: m.page, Err: err}
	}
	return nil
}

// prove reads a page back, and writes it again where it can't be read: the poison
// was on no list when the page was written, so that the write could not clear it,
// and the read has listed it (kernel facts, 2); or it has come since. If not all
// that the page holds must be ours, what differs is newer and stays.
func (f *File) prove(d *damage, u *unfinished, m *mend, ours bool) error {
	for try := 1; ; try++ {
		err := f.readsBack(m)
		switch {
		case err == nil, errors.Is(err, errDiffers) && (!ours || u.shared || f.ino.isShared()):
			if try > 1 {
				return f.makeDurable(u, m, ours)
			}
			return nil
		case m.before == nil && errors.Is(err, unix.EBADF):
			return nil // open for writing only
		case !ours && f.ino.isShared():
			return &RepairError{Step: "share", Page: m.page, Err: errShared}
		case try == tries || !mayBePoison(err):
			return &RepairError{Step: "read-back", Page: m.page, Err: err}
		}
		if err := f.writeAgain(d, u, m); err != nil {
			return err
		}
		if err := f.cutBack(d, u, m, ours); err != nil {
			return err
		}
	}
}

// writeAgain is clear for a page that was cleared before, and holds what it shall
// hold, or did.
func (f *File) writeAgain(d *damage, u *unfinished, m *mend) error {
	if err := f.claim([]*mend{m}); err != nil {
		return err
	}
	was := newPage(m.page.Off, u.target)
	was.missing = ranges.Of(m.stillMissing()...)
	copy(was.data[:], m.content)
	again := *m
	again.before = was
	r := &repair{file: f, damage: d, size: u.target, end: u.target}
	err := r.clear(&again)
	m.was, m.sharers = again.was, again.sharers
	if m.rung = again.rung; again.intent != m.intent { // of the punch, with an image
		m.intent = again.intent
		u.change.Close = append(u.change.Close, m.intent.ID)
	}
	return err
}

// errDiffers says that a page can be read and is not what was written.
var errDiffers = fmt.Errorf("the page reads back different: %w", unix.EIO)

// readsBack fails if the medium does not hold what was written.
func (f *File) readsBack(m *mend) error {
	inFile := m.page.Intersect(ranges.Between(0, m.intent.End))
	got := make([]byte, inFile.Len)
	n, err := f.below.Pread(got, inFile.Off)
	if err == nil && !bytes.Equal(got[:n], m.content[:inFile.Len]) {
		err = errDiffers
	}
	return err
}

// pages is what was repaired, neighbours as one.
func (u *unfinished) pages() (out []ranges.Range) {
	for _, m := range u.mends {
		out = join(out, m.page)
	}
	return out
}

// span is from the first page to the last, with what lies between and was not repaired.
func (u *unfinished) span() ranges.Range {
	if len(u.mends) == 0 {
		return ranges.Range{}
	}
	return ranges.Between(u.mends[0].page.Off, u.mends[len(u.mends)-1].page.End())
}

// leaveOpen remembers a repair that could not be finished: nobody writes its
// pages before it is.
func (f *File) leaveOpen(d *damage, u *unfinished) {
	f.engine.pin(f.ino, d.key)
	d.mu.Lock()
	defer d.mu.Unlock()
	u.late = true
	d.open = append(d.open, u)
	for _, m := range u.mends {
		m.content = bytes.Clone(m.content) // it may be the request's, which ends now
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

// tryFinishOpen is finishOpen for those who can do without.
func (f *File) tryFinishOpen(r ranges.Range) {
	d := f.ino.damage.Load()
	if d == nil || f.engine.pins.Load() == 0 || !d.isOpen(r) {
		return
	}
	f.ino.lock()
	defer f.ino.unlock()
	defer f.ino.changed(everything())
	_ = f.finishOpen(d) // whoever writes there gets the error
}

// Size is what programs shall see of a file that has size bytes below: one that a
// repair of the tail page made longer, and could not cut back yet, ends where it
// will end.
func (i *Inode) Size(size int64) int64 {
	d := i.damage.Load()
	if d == nil || i.engine.pins.Load() == 0 {
		return size
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, u := range d.open {
		if u.span().End() == size && u.target < size {
			return u.target
		}
	}
	return size
}

// isOpen reports whether pages touched by r wait for their repair to be finished.
func (d *damage) isOpen(r ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.openPages.Overlaps(r.Widen(ranges.PageSize))
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
