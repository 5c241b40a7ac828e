package recovery

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// PrepareRemoval has to come before the file loses its last name. Where poison
// that can't be cleared does harm in free space, it clears what is listed in the
// file, and fails if that can't be done: the file must keep its name then.
func (f *File) PrepareRemoval(who Caller) error {
	if !f.engine.MustClear() {
		return nil
	}
	return f.clearBefore(false, who)
}

// Free has to come before the last descriptor of a file without names is closed:
// it clears what is listed in it, and keeps nothing. An error says that the
// descriptor had better stay open, as long as this process lives: where poison does
// no harm in free space there is none.
func (f *File) Free() error {
	if !f.engine.Semantics.Recover {
		return nil
	}
	err := f.clearBefore(true, Caller{})
	if f.engine.MustClear() {
		return err
	}
	f.abandon()
	return nil
}

// abandon lets go of repairs that could not be finished of a file that goes. Replay
// finds it gone, and closes their intents.
func (f *File) abandon() {
	d := f.ino.damage.Load()
	if d == nil || f.engine.pins.Load() == 0 {
		return
	}
	f.ino.lock()
	defer f.ino.unlock()
	d.mu.Lock()
	d.open, d.openPages = nil, ranges.Set{}
	d.mu.Unlock()
	f.engine.unpin(d.key)
}

func (f *File) clearBefore(givenUp bool, who Caller) error {
	if !f.mayFreeListed(everything()) {
		return nil
	}
	f.ino.lock()
	defer f.ino.unlock()
	if !givenUp && f.ino.isShared() {
		return nil // programs have it open: Free comes when they have closed it
	}
	defer f.ino.changed(everything())
	d, err := f.know()
	if err != nil {
		return err
	}
	defer f.ino.dropBlank(d)
	if err := f.finishOpen(d); err != nil {
		return err
	}
	st, err := f.stat()
	if err != nil {
		return err
	}
	return f.clearFreed(d, everything(), givenUp, st.Size, who)
}

// clearFreed clears the poison that is listed in pages of r before the
// filesystem gets them back, since nobody could clear it then. Of pages that other
// files share nothing is freed. What can be salvaged is kept until they are gone,
// since the change may fail yet, unless the file is given up. If a page can't be
// cleared, it stays where it would do harm as free space: the error names it.
func (f *File) clearFreed(d *damage, r ranges.Range, givenUp bool, size int64, who Caller) error {
	pages := slices.DeleteFunc(f.listedOwn(r.Intersect(ranges.Between(0, size))), func(page ranges.Range) bool {
		return !r.Contains(page) // the rest of it stays with the file
	})
	for len(pages) > 0 {
		n := min(len(pages), mendAtOnce)
		failed, err := f.clearPages(d, pages[:n], givenUp, size, who)
		if err != nil && f.engine.MustClear() {
			return err
		}
		if err != nil {
			n = 1 + pagesBefore(pages, failed) // it is the filesystem's own now: it clears what it allocates
		}
		pages = pages[n:]
	}
	return nil
}

func pagesBefore(pages []ranges.Range, at ranges.Range) (n int) {
	for n < len(pages)-1 && pages[n].Off < at.Off {
		n++
	}
	return n
}

// mayFreeListed reports whether pages of r are known to be listed, for those who
// free them and know of nothing wrong. Of a file that has nothing there no list is
// read.
func (f *File) mayFreeListed(r ranges.Range) bool {
	if r.Empty() {
		return false
	}
	if f.engine.MustClear() {
		if st, err := f.below.Stat(); err == nil && st.Size <= r.Off {
			return false
		}
	}
	if !f.engine.AnyListed() {
		return false
	}
	device := f.below.Device()
	if device == nil {
		return false
	}
	own, shared, err := device.Known(r) // who shares may be gone: Listed finds out
	return err == nil && (!own.Empty() || f.engine.MustClear() && !shared.Empty())
}

// listedOwn is the pages of r, one by one, that hold listed sectors in blocks of
// the file's own. What can't be asked is not known.
func (f *File) listedOwn(r ranges.Range) (pages []ranges.Range) {
	if r.Empty() {
		return nil
	}
	device := f.below.Device()
	if device == nil {
		return nil
	}
	own, _, err := device.Listed(r)
	if err != nil {
		return nil
	}
	for run := range own.All() {
		for page := ranges.Page(run.Off); page.Off < run.End(); page = page.Shift(ranges.PageSize) {
			pages = append(pages, page)
		}
	}
	return pages
}

// clearPages repairs pages that are listed, whether they can be read or not. Of
// those that are given up nothing is kept. It returns the page that could not be
// cleared.
func (f *File) clearPages(d *damage, pages []ranges.Range, givenUp bool, size int64, who Caller) (failed ranges.Range, err error) {
	rep := &repair{file: f, damage: d, size: size, end: size, freeing: true, who: who}
	zeros := make([]byte, ranges.PageSize)
	for _, page := range pages {
		m := &mend{page: page}
		if givenUp {
			m.fresh, m.data = page, zeros
		}
		rep.mends = append(rep.mends, m)
	}
	if failed, err = rep.run(); err != nil {
		return failed, err
	}
	if left := f.listedOwn(ranges.Between(pages[0].Off, pages[len(pages)-1].End())); len(left) > 0 {
		err := &RepairError{Step: "free", Page: left[0], Err: fmt.Errorf("the page is still listed after it was written: %w", unix.EIO)}
		f.emitFailure(err.Step, left[0], err)
		return left[0], err
	}
	return ranges.Range{}, nil
}

// MustClear reports whether PrepareRemoval may have something to do at all. It costs
// no system call.
func (e *Engine) MustClear() bool {
	return e.Semantics.Recover && !e.ReadOnly && e.Medium.MustClear()
}

// AnyListed reports whether a list of media errors has anything at all: whether
// PrepareRemoval and Free may have something to do. It costs no system call, but
// where MustClear: there the list is read, since the kernel does not tell of all that
// is added to it (lab facts, TestSilentAdditionIsNotFreed).
func (e *Engine) AnyListed() bool {
	if e.MustClear() {
		return e.Medium.LookListed()
	}
	return e.Medium.AnyListed()
}
