package recovery

import (
	"bytes"

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
	err         error       // the failure, never nil
	cause       string      // eio, efault, short-read
	verdict     media.Verdict
	part        bool // salvage gave some of it where an ordinary read gave nothing
	known       bool // from what was known; nothing new was learnt
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
	for piece := range ranges.Of(p.missing.Slice()...).Within(got) {
		copy(p.slice(piece), b[piece.Off-off:])
		p.missing.Remove(piece)
	}
}

// salvage asks the medium for what is missing by all other ways. What is still
// missing after some of the page was had is asked for once more: no byte is
// given up for a failure that passed.
func (p *page) salvage(f media.File) {
	for range 2 {
		for _, m := range p.missing.Slice() {
			var buf [ranges.PageSize]byte
			missing, granularity := f.Salvage(buf[:m.Len], m.Off)
			p.granularity = min(p.granularity, granularity)
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
	for m := range ranges.Of(p.missing.Slice()...).Within(part) {
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

// fill copies what the page has into buf, which stands for r, and zeros what is
// missing.
func (p *page) fill(buf []byte, r ranges.Range) {
	part := p.want.Intersect(r)
	copy(buf[part.Off-r.Off:part.End()-r.Off], p.slice(part))
	for hole := range p.missing.Within(part) {
		clear(buf[hole.Off-r.Off : hole.End()-r.Off])
	}
}
