package recovery

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Truncate sets the file's size. Pages that it touches only in part are
// repaired first if they are bad: the kernel zeros the part and would fail
// (XFS), or leave the poison there (ext4; lab facts).
func (f *File) Truncate(size int64, who Caller) error {
	edges := func(old int64) []ranges.Range {
		return partPages(old, min(size, old)) // cut there, or grown from there
	}
	freed := ranges.Between(size, everything().End())
	return f.reshape(freed, edges, func() error { return f.below.Truncate(size) }, func(d *damage, old int64) error {
		if size >= old {
			return nil
		}
		end := ranges.Page(min(old, everything().End()-2*ranges.PageSize) + ranges.PageSize).End()
		return f.gave(d, ranges.Between(size, end), event.Cleared, "cut-off")
	}, who)
}

// Allocate is fallocate(2). Pages that it touches only in part are repaired
// first if they are bad; a punched or zeroed range has nothing lost in it any
// more.
func (f *File) Allocate(mode uint32, off, length int64, who Caller) error {
	r := ranges.Range{Off: off, Len: length}
	zeroes := mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0
	edges := func(old int64) []ranges.Range {
		var at []int64
		if zeroes {
			at = append(at, r.Off, r.End())
		}
		if r.End() > old {
			at = append(at, old)
		}
		return partPages(old, at...)
	}
	var freed ranges.Range
	if zeroes {
		freed = r
	}
	return f.reshape(freed, edges, func() error { return f.below.Allocate(mode, off, length, who.claims()) }, func(d *damage, old int64) error {
		if !zeroes {
			return nil
		}
		return f.gave(d, r, event.Reinitialized, "zeroed")
	}, who)
}

// partPages is the pages within a file of the given size that the offsets cut
// in two.
func partPages(size int64, offsets ...int64) []ranges.Range {
	var out []ranges.Range
	for _, at := range offsets {
		page := ranges.Page(at)
		if at != page.Off && page.Off < size && !slices.Contains(out, page) {
			out = append(out, page)
		}
	}
	return out
}

// reshape changes sizes or blocks: freed is what the filesystem may get back, edges are
// the pages that change touches in part, after follows a success where anything is
// known of the file.
func (f *File) reshape(freed ranges.Range, edges func(size int64) []ranges.Range, change func() error, after func(d *damage, size int64) error, who Caller) error {
	if done, err := f.reshapeClean(freed, change); done {
		return err
	}
	f.ino.lock()
	defer f.ino.unlock()
	defer f.ino.changed(everything())
	d, err := f.know()
	if err != nil {
		return err
	}
	if err := f.finishOpen(d); err != nil {
		return err
	}
	if err := f.engine.endClosing(d.key, everything()); err != nil {
		return err
	}
	st, err := f.stat()
	if err != nil {
		return err
	}
	for _, page := range edges(st.Size) {
		if d.concernsRead(page) || len(f.listedOwn(page)) > 0 {
			if err := f.mendPage(d, page, st.Size, who); err != nil {
				return err
			}
		}
	}
	if err := f.clearFreed(d, freed, false, st.Size, who); err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := change()
		if err == nil {
			return after(d, st.Size)
		}
		if !mayBePoison(err) {
			return f.trouble(ranges.Range{}, err)
		}
		at := edges(st.Size)
		listed := func(page ranges.Range) bool { return f.below.Corroborate(page) == media.Listed }
		if try > 1 && (try == tries || !slices.ContainsFunc(at, listed)) {
			return f.outage(ranges.Between(0, st.Size), err)
		}
		for _, page := range at {
			if err := f.mendPage(d, page, st.Size, who); err != nil {
				return err
			}
		}
	}
}

// reshapeClean is the path where nothing is known of the file.
func (f *File) reshapeClean(freed ranges.Range, change func() error) (done bool, err error) {
	f.ino.mu.RLock()
	defer f.ino.mu.RUnlock()
	if f.engine.Semantics.Recover && (f.ino.damage.Load() != nil || f.mayFreeListed(freed)) {
		return false, nil
	}
	defer f.ino.changed(everything())
	err = change()
	if f.engine.Semantics.Recover && err != nil && mayBePoison(err) {
		return false, nil
	}
	if err != nil {
		return true, f.trouble(ranges.Range{}, err)
	}
	return true, nil
}

// gave follows the application's giving up the bytes of r: what was lost there
// does not matter any more, and whole pages are not bad any more. kind and
// action are told if that means anything.
func (f *File) gave(d *damage, r ranges.Range, kind event.Kind, action string) error {
	wasBad := d.badPages().Overlaps(r)
	change, path := ledger.Change{}, f.path()
	for _, live := range append(d.lostWithin(r), d.reinitWithin(r)...) {
		change.Moves = append(change.Moves, ledger.Move{File: d.id, Path: path, Range: live, To: ledger.Overwritten})
	}
	if err := f.recordGone(d, r, change); err != nil {
		return err
	}
	whole := ranges.Between(r.Off+ranges.PageSize-1, r.End()).Off &^ (ranges.PageSize - 1)
	inside := ranges.Between(whole, r.End()&^(ranges.PageSize-1))
	d.forget(inside)
	f.dropImagesNow(d, inside)
	if wasBad || len(change.Moves) > 0 {
		ev := f.event(kind, r, Caller{})
		ev.Action = action
		f.engine.Events.Emit(ev)
	}
	return nil
}
