package recovery

import (
	"fmt"
	"slices"

	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// knownBad is bad pages that were served from what is known, and the bytes of
// them that are missing: in order, neighbours as one, so that a file of bad pages
// costs a read little more than a clean one.
type knownBad struct {
	pages, missing []ranges.Range
}

func (k *knownBad) add(page ranges.Range, missing ...ranges.Range) {
	k.pages = join(k.pages, page)
	for _, m := range missing {
		k.missing = join(k.missing, m)
	}
}

// salvaged is how many bytes of the pages are kept, in a file of that size.
func (k *knownBad) salvaged(size int64) int64 {
	kept := int64(0)
	for _, p := range k.pages {
		kept += p.Intersect(ranges.Between(0, size)).Len
	}
	for _, m := range k.missing {
		kept -= m.Len
	}
	return kept
}

// join adds r, which lies behind all of rs.
func join(rs []ranges.Range, r ranges.Range) []ranges.Range {
	switch n := len(rs); {
	case r.Empty():
		return rs
	case n > 0 && rs[n-1].End() == r.Off:
		rs[n-1].Len += r.Len
		return rs
	}
	return append(rs, r)
}

// oneContains reports whether one of rs, which are in order, contains r.
func oneContains(rs []ranges.Range, r ranges.Range) bool {
	i, found := slices.BinarySearchFunc(rs, r.Off, func(o ranges.Range, off int64) int {
		switch {
		case o.End() <= off:
			return -1
		case o.Off > off:
			return 1
		}
		return 0
	})
	return found && rs[i].Contains(r)
}

// serveKnown serves neighbouring known-bad pages from their images, or as zeros
// where they have none and all of them was given up. Those on nobody's list are asked once more before, and
// so are all while the kernel may be writing the file.
func (r *recoveryRead) serveKnown(run ranges.Range) error {
	if r.damage.isSuspected(run) {
		return r.askSuspected(run)
	}
	if r.file.ino.isShared() || r.damage.isUnsure(run) {
		for page := ranges.Page(run.Off); page.Off < run.End(); page = page.Shift(ranges.PageSize) {
			if err := r.askAgain(page); err != nil {
				return err
			}
		}
		return nil
	}
	pos := run.Off
	for _, kept := range r.damage.imagesWithin(run) {
		if err := r.serveZeros(ranges.Between(pos, kept.Off)); err != nil {
			return err
		}
		for page := ranges.Page(kept.Off); page.Off < kept.End(); page = page.Shift(ranges.PageSize) {
			if err := r.serveImage(page); err != nil {
				return err
			}
		}
		pos = kept.End()
	}
	return r.serveZeros(ranges.Between(pos, run.End()))
}

// serveZeros serves pages of which nothing is kept. If the file has grown since
// they were met, not all of the last was asked for.
func (r *recoveryRead) serveZeros(pages ranges.Range) error {
	for _, unasked := range r.damage.notLost(r.inFile(pages)) {
		page := ranges.Page(unasked.Off)
		r.zero(ranges.Between(pages.Off, page.Off))
		if err := r.fetch(page.Intersect(r.want)); err != nil {
			return err
		}
		pages = ranges.Between(max(pages.Off, page.End()), pages.End())
	}
	r.zero(pages)
	return nil
}

func (r *recoveryRead) zero(pages ranges.Range) {
	r.wipe(pages)
	r.known.add(pages, r.inFile(pages))
}

// wipe zeros what of the buffer stands for bytes of span.
func (r *recoveryRead) wipe(span ranges.Range) {
	if span = span.Intersect(r.want); !span.Empty() {
		clear(r.slice(span))
	}
}

func (r *recoveryRead) inFile(pages ranges.Range) ranges.Range {
	return pages.Intersect(ranges.Between(0, r.size))
}

// serveImage serves a page of which something is kept.
func (r *recoveryRead) serveImage(page ranges.Range) error {
	im, ok, err := r.image(page)
	if err != nil {
		return r.serveUnread(page, err)
	}
	if !ok {
		return r.serveZeros(page)
	}
	part := page.Intersect(r.want)
	copy(r.slice(part), im.Data[part.Off-page.Off:])
	r.known.add(page)
	for _, m := range im.Missing {
		r.wipe(m.Intersect(page))
		r.known.add(ranges.Range{}, r.inFile(m.Intersect(page)))
	}
	return nil
}

func (r *recoveryRead) image(page ranges.Range) (journal.Image, bool, error) {
	im, ok, err := r.file.engine.Journal.Image(r.damage.key, page.Off)
	if err != nil {
		err = fmt.Errorf("reading the kept image of page %v: %w", page, err)
	}
	return im, ok, err
}

// serveUnread serves a page whose image the state disk does not give back: the medium is
// asked for what it has. What a repair has emptied is nowhere else than in the image.
func (r *recoveryRead) serveUnread(page ranges.Range, unread error) error {
	if r.file.engine.Journal.PendingPages(r.damage.key).Overlaps(page) {
		emptied, err := r.isEmptied(page, nil)
		switch {
		case err != nil:
			return err
		case emptied:
			return unread
		}
	}
	r.well = append(r.well, page) // the image is of no use
	return r.fetch(page.Intersect(r.want))
}

// isEmptied reports whether a page that is owed an image is what a repair of ours has
// left: a hole, or zeros. data is the image's; nil if it can't be had.
func (r *recoveryRead) isEmptied(page ranges.Range, data []byte) (bool, error) {
	if hole, err := r.file.below.IsHole(page); hole || err != nil {
		return hole, err
	}
	p := newPage(page.Off, r.size)
	return p.retry(r.file.below) == nil && p.mayBeEmptied(data), nil
}

// askAgain serves a page that may be good by now.
func (r *recoveryRead) askAgain(page ranges.Range) error {
	im, ok, err := r.image(page)
	if err != nil {
		return r.serveUnread(page, err)
	}
	emptied := false // the zeros that a repair has left are nobody's data
	if ok && im.Pending {
		if emptied, err = r.isEmptied(page, im.Data); err != nil {
			return err
		}
	}
	p := newPage(page.Off, r.size)
	if !emptied && (r.damage.isUnsure(page) || r.file.ino.isShared()) {
		err := p.retry(r.file.below)
		if err == nil {
			r.well = append(r.well, page)
			p.fill(r.buf, r.want)
			return nil
		}
		if !mayBePoison(err) {
			return r.file.trouble(page, err)
		}
	}
	if ok && !p.merge(im.Data, im.Missing) {
		r.well = append(r.well, page) // the image is of another time
		return r.fetch(page.Intersect(r.want))
	}
	if !ok && len(r.damage.notLost(p.want)) > 0 {
		return r.fetch(page.Intersect(r.want)) // as serveZeros
	}
	p.fill(r.buf, r.want)
	r.known.add(page, p.missing.Slice()...)
	return nil
}

// knownPages is the pages served from what is known, one by one. The read must be
// of whole pages.
func (r *recoveryRead) knownPages() []*page {
	var out []*page
	missing := ranges.Of(r.known.missing...)
	for _, run := range r.known.pages {
		for off := run.Off; off < run.End(); off += ranges.PageSize {
			p := newPage(off, r.size)
			p.merge(r.slice(p.want), slices.Collect(missing.Within(p.want)))
			out = append(out, p)
		}
	}
	return out
}
