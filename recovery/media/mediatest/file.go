package mediatest

import (
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

type file struct {
	medium *Medium
	below  media.File
}

func (f *file) Fd() int { return f.below.Fd() }

func (f *file) Pread(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = Garbage
	}
	r := ranges.Range{Off: off, Len: int64(len(p))}
	bad, err := f.medium.enter(f.Fd(), Pread, r)
	if err != nil {
		return 0, err
	}
	defer f.medium.mu.Unlock()
	st, err := f.below.Stat()
	if err != nil {
		return 0, err
	}
	good := firstGood(bad, ranges.Between(off, min(r.End(), st.Size)))
	if good == 0 && off < st.Size && len(p) > 0 {
		return 0, unix.EIO
	}
	return f.below.Pread(p[:good], off)
}

func (f *file) Pwrite(p []byte, off int64, uid uint32) (int, error) {
	r := ranges.Range{Off: off, Len: int64(len(p))}
	bad, err := f.medium.enter(f.Fd(), Pwrite, r)
	if err != nil {
		return 0, err
	}
	defer f.medium.mu.Unlock()
	stop, refusal := f.medium.firstRefused(bad, r)
	if stop == 0 && len(p) > 0 {
		return 0, refusal
	}
	n, err := f.below.Pwrite(p[:stop], off, uid)
	if err == nil {
		bad.Remove(wholePages(ranges.Range{Off: off, Len: int64(n)}))
	}
	return n, err
}

func (f *file) Allocate(mode uint32, off, length int64, uid uint32) error {
	r := ranges.Range{Off: off, Len: length}
	bad, err := f.medium.enter(f.Fd(), Allocate, r)
	if err != nil {
		return err
	}
	defer f.medium.mu.Unlock()
	zeroes := mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0
	whole := wholePages(r)
	if zeroes {
		for b := range bad.Within(r.Widen(ranges.PageSize)) {
			if !whole.Contains(b) {
				return unix.EIO
			}
		}
	}
	if err := f.below.Allocate(mode, off, length, uid); err != nil {
		return err
	}
	if zeroes {
		bad.Remove(whole)
	}
	return nil
}

func (f *file) Truncate(size int64) error {
	bad, err := f.medium.enter(f.Fd(), Truncate, ranges.Range{Off: size})
	if err != nil {
		return err
	}
	defer f.medium.mu.Unlock()
	if size%ranges.PageSize != 0 && bad.Overlaps(ranges.Page(size)) {
		return unix.EIO
	}
	if err := f.below.Truncate(size); err != nil {
		return err
	}
	bad.Remove(ranges.Between(size, 1<<62))
	return nil
}

func (f *file) Salvage(buf []byte, off int64) ([]ranges.Range, int64) {
	for i := range buf {
		buf[i] = Garbage
	}
	r := ranges.Range{Off: off, Len: int64(len(buf))}
	bad, err := f.medium.enter(f.Fd(), Salvage, r)
	if err != nil {
		return []ranges.Range{r}, f.medium.granularity
	}
	defer f.medium.mu.Unlock()
	missing := ranges.Set{}
	for b := range bad.Within(r) {
		missing.Add(b)
	}
	for g := range bad.Gaps(r) {
		piece := buf[g.Off-off : g.End()-off]
		n, err := f.below.Pread(piece, g.Off)
		if err != nil {
			missing.Add(g)
			continue
		}
		clear(piece[n:]) // the file ends here
	}
	return missing.Slice(), f.medium.granularity
}

func (f *file) Corroborate(r ranges.Range) media.Verdict {
	if _, err := f.medium.enter(f.Fd(), Corroborate, r); err == nil {
		f.medium.mu.Unlock()
	}
	return media.Unknown
}

// Device is nil: there is none below.
func (f *file) Device() media.Device { return nil }

func (f *file) Control(*ranges.Set) error {
	return f.plain(Control, ranges.Range{}, func() error { return nil })
}

func (f *file) Sync(full bool) error {
	return f.plain(Sync, ranges.Range{}, func() error { return f.below.Sync(full) })
}

func (f *file) Stat() (st media.Stat, err error) {
	err = f.plain(Stat, ranges.Range{}, func() error {
		st, err = f.below.Stat()
		return err
	})
	return st, err
}

func (f *file) SetMtime(ns int64) error {
	return f.plain(SetMtime, ranges.Range{}, func() error { return f.below.SetMtime(ns) })
}

func (f *file) IsHole(r ranges.Range) (hole bool, err error) {
	err = f.plain(IsHole, r, func() error {
		hole, err = f.below.IsHole(r)
		return err
	})
	return hole, err
}

// plain is a call that bad ranges don't matter to.
func (f *file) plain(op Op, r ranges.Range, do func() error) error {
	if _, err := f.medium.enter(f.Fd(), op, r); err != nil {
		return err
	}
	defer f.medium.mu.Unlock()
	return do()
}

// firstRefused is the number of bytes that a write of r gets through before
// the page that it can't clear, and the errno there. Called with m.mu held.
func (m *Medium) firstRefused(bad *ranges.Set, r ranges.Range) (int64, error) {
	whole := wholePages(r)
	for b := range bad.Within(r.Widen(ranges.PageSize)) {
		for page := ranges.Page(b.Off); page.Off < b.End(); page.Off += ranges.PageSize {
			switch {
			case m.refuse != nil:
				return max(0, page.Off-r.Off), m.refuse
			case !whole.Contains(page):
				return max(0, page.Off-r.Off), unix.EIO
			}
		}
	}
	return r.Len, nil
}

// firstGood is the number of bytes of r in front of the first bad one.
func firstGood(bad *ranges.Set, r ranges.Range) int64 {
	for b := range bad.Within(r) {
		return b.Off - r.Off
	}
	return r.Len
}

// wholePages is the part of r that consists of whole pages.
func wholePages(r ranges.Range) ranges.Range {
	const mask = ranges.PageSize - 1
	return ranges.Between((r.Off+mask)&^mask, r.End()&^mask)
}
