package recovery

import (
	"cmp"
	"errors"
	"slices"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// ErrShared says that a file can't be repaired out of band now: the kernel may be
// writing it by itself.
var ErrShared = errors.New("the kernel serves the file to programs by itself")

// mendAtOnce is how many pages are repaired with the inode held: as many as
// readers and writers of the file may have to wait for.
const mendAtOnce = 16

// Reinitialize clears the poison that is known in the file, as writes by an
// application would that write nothing: what can be salvaged of the pages stays,
// the rest is zero and recorded, mtime is as it was. Only pages that somebody's
// list names are touched: a failure that has no other witness may pass. A page that the
// medium refuses stays as it was, and those behind it are done all the same: the error
// is of the first.
//
// Not from inside a request. Have the kernel write its dirty pages of the file
// first, and drop afterwards what TakeChanged says.
func (f *File) Reinitialize() error {
	var refused error
	for pos := int64(0); ; {
		next, err := f.reinitializeFrom(pos)
		if page, goOn := refusedPage(err); goOn {
			refused, next = cmp.Or(refused, err), page.End()
		} else if err != nil {
			return err
		}
		if next <= pos {
			return refused
		}
		pos = next
	}
}

// refusedPage is the page of a repair that failed for what the medium made of it alone.
func refusedPage(err error) (page ranges.Range, ok bool) {
	var at *RepairError
	if !errors.As(err, &at) {
		return page, false
	}
	switch at.Step {
	case "write", "punch", "raw":
		return at.Page, true
	}
	return page, false
}

// reinitializeFrom does the next few pages from pos on, and returns where to go
// on; pos if there are no more.
func (f *File) reinitializeFrom(pos int64) (next int64, err error) {
	f.ino.lock()
	defer f.ino.unlock()
	d := f.ino.damage.Load()
	switch {
	case d == nil:
		return pos, nil
	case f.ino.isShared():
		return pos, ErrShared
	}
	defer f.ino.changed(everything())
	defer f.ino.dropBlank(d)
	if err := f.finishOpen(d); err != nil {
		return pos, err
	}
	st, err := f.stat()
	if err != nil {
		return pos, err
	}
	bad := f.listedBad(d, ranges.Between(pos, st.Size))
	if len(bad) == 0 {
		return pos, nil
	}
	return bad[len(bad)-1].End(), f.mendAll(d, bad, st.Size)
}

// listedBad is the first pages in r that are taken for bad and are listed.
func (f *File) listedBad(d *damage, r ranges.Range) []ranges.Range {
	bad := slices.Collect(d.badPages().Within(r.Widen(ranges.PageSize)))
	return f.listedOf(bad, mendAtOnce)
}

// listedOf is the first pages of bad, at most so many, that are listed. It asks for all
// at once, and by halves where the answer is yes: the inode is held, and whoever keeps
// the list may have to be asked through the kernel.
func (f *File) listedOf(bad []ranges.Range, most int) []ranges.Range {
	if len(bad) == 0 || most <= 0 {
		return nil
	}
	all := ranges.Between(bad[0].Off, bad[len(bad)-1].End())
	if f.below.Corroborate(all) != media.Listed {
		return nil
	}
	if all.Len <= ranges.PageSize {
		return []ranges.Range{all}
	}
	front, back := halve(bad)
	out := f.listedOf(front, most)
	return append(out, f.listedOf(back, most-len(out))...)
}

// halve cuts pieces of pages, of which there are two or more, in the middle.
func halve(pieces []ranges.Range) (front, back []ranges.Range) {
	if n := len(pieces) / 2; n > 0 {
		return pieces[:n], pieces[n:]
	}
	one := pieces[0]
	middle := ranges.Page(one.Off + one.Len/2).Off
	return []ranges.Range{ranges.Between(one.Off, middle)}, []ranges.Range{ranges.Between(middle, one.End())}
}

// mendAll repairs those of the pages that are bad, in one batch.
func (f *File) mendAll(d *damage, pages []ranges.Range, size int64) error {
	rep := &repair{file: f, damage: d, size: size, end: size}
	for _, page := range pages {
		bad, err := f.inspect(page, size, Caller{})
		if err != nil {
			return err
		}
		if len(bad) > 0 {
			rep.mends = append(rep.mends, &mend{page: page})
		}
	}
	if len(rep.mends) == 0 {
		return nil
	}
	_, err := rep.run()
	return err
}
