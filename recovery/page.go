package recovery

import (
	"bytes"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// page is one page that failed when it was asked for alone, and what could be
// had of it.
type page struct {
	off         int64
	want        ranges.Range // its bytes within the file
	data        [ranges.PageSize]byte
	missing     *ranges.Set // bytes of want that could not be had; zero in data
	granularity int64       // the smallest unit that could be asked for
	why         string      // it was that; "" where there is but one way to ask
	err         error       // the failure, never nil
	cause       string      // eio, efault, short-read
	verdict     media.Verdict
	part        bool // salvage gave some of it where an ordinary read gave nothing
}

func newPage(off, size int64) *page {
	want := ranges.Page(off).Intersect(ranges.Between(0, size))
	return &page{
		off: ranges.Page(off).Off, want: want, missing: ranges.Of(want),
		granularity: ranges.PageSize, err: unix.EIO, cause: "eio",
	}
}

func (p *page) whole() ranges.Range { return ranges.Page(p.off) }

// salvagedBytes is how much of the page is kept.
func (p *page) salvagedBytes() int64 { return p.want.Len - p.missing.Bytes() }

// slice is the bytes of the page in r.
func (p *page) slice(r ranges.Range) []byte {
	return p.data[r.Off-p.off : r.End()-p.off]
}

// have takes bytes, starting at off, that were read well.
func (p *page) have(b []byte, off int64) {
	got := ranges.Range{Off: off, Len: int64(len(b))}
	for piece := range p.missing.Within(got) {
		copy(p.slice(piece), b[piece.Off-off:])
	}
	p.missing.Remove(got)
}

// salvage asks the medium for what is missing by all other ways. What is still
// missing after some of the page was had is asked for once more: no byte is
// given up for a failure that passed.
func (p *page) salvage(f media.File) {
	var buf [ranges.PageSize]byte // one for all pieces: it is made anew for each page, and there may be very many
	for range 2 {
		for _, m := range p.missing.Slice() {
			missing, granularity, why := salvage(f, buf[:m.Len], m.Off)
			if granularity <= p.granularity {
				p.granularity, p.why = granularity, why
			}
			for got := range ranges.Of(missing...).Gaps(m) {
				p.have(buf[got.Off-m.Off:got.End()-m.Off], got.Off)
				p.part = true
			}
		}
		if !p.part {
			return // it fails as a whole
		}
	}
}

// salvage is f.Salvage, and why, where the device can say that.
func salvage(f media.File, buf []byte, off int64) (missing []ranges.Range, granularity int64, why string) {
	if device := f.Device(); device != nil {
		return device.Salvage(buf, off)
	}
	missing, granularity = f.Salvage(buf, off)
	return missing, granularity, ""
}

// merge adds the bytes of an image kept from an earlier look, provided that it
// agrees with every byte that both have: otherwise it is of another time.
func (p *page) merge(data []byte, imageMissing []ranges.Range) (agrees bool) {
	image := ranges.Of(imageMissing...)
	for both := range p.missing.Gaps(p.want) {
		for piece := range image.Gaps(both) {
			if !bytes.Equal(p.slice(piece), data[piece.Off-p.off:piece.End()-p.off]) {
				return false
			}
		}
	}
	for piece := range image.Gaps(p.want) {
		p.have(data[piece.Off-p.off:piece.End()-p.off], piece.Off)
	}
	return true
}

// ask reads what is missing of a part of the page by itself.
func (p *page) ask(f media.File, part ranges.Range) {
	var buf [ranges.PageSize]byte
	for _, m := range slices.Collect(p.missing.Within(part)) {
		if n, err := f.Pread(buf[:m.Len], m.Off); err == nil {
			p.have(buf[:n], m.Off)
		}
	}
}

// retry reads the whole page again. On success nothing is missing any more.
func (p *page) retry(f media.File) error {
	var buf [ranges.PageSize]byte
	n, err := f.Pread(buf[:p.want.Len], p.want.Off)
	if err != nil {
		return err
	}
	p.have(buf[:n], p.want.Off)
	if int64(n) < p.want.Len {
		return unix.EIO
	}
	return nil
}

// mayBeEmptied reports whether the page, which reads well, is all that is left of an
// image owed to it: a repair has zeroed sectors of it and could not write it then. data
// is nil if the image can't be had: then any sector of zeros may be such a one.
func (p *page) mayBeEmptied(data []byte) bool {
	emptied := false
	for at := p.want.Off; at < p.want.End(); at += ranges.SectorSize {
		sector := ranges.Range{Off: at, Len: ranges.SectorSize}.Intersect(p.want)
		now := p.slice(sector)
		switch {
		case data != nil && bytes.Equal(now, data[sector.Off-p.off:sector.End()-p.off]):
		case isZero(now):
			emptied = true
		case data != nil:
			return false // somebody else's
		}
	}
	return emptied
}

// fill copies what the page has into buf, which stands for r, and zeros what is
// missing.
func (p *page) fill(buf []byte, r ranges.Range) {
	part := p.want.Intersect(r)
	copy(buf[part.Off-r.Off:part.End()-r.Off], p.slice(part))
	for hole := range p.missing.Within(part) {
		clear(buf[hole.Off-r.Off : hole.End()-r.Off])
	}
}
