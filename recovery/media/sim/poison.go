package sim

import (
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// poison is what is wrong with one file. It is guarded by Medium.mu.
type poison struct {
	id   fileid.ID
	path string // when last injected into

	bad     ranges.Set     // lines that can't be read; the truth
	listed  ranges.Set     // known poison, in units of the list; covers some of bad
	known   []ranges.Range // listed, since it was asked for; nil: it has changed (Known)
	touched ranges.Set     // latent lines that a read came short of: known at the next touch

	// sums are checksums of the stored bytes of each page with poison, or
	// unknownSum. Poison sits on memory, not on names: when the bytes
	// differ after a restart, the blocks were given back and written anew.
	sums     map[int64]int64
	verified bool // sums hold, since this process compared them or made them

	injected []*injection
}

// injection is one order to poison a range, and what is left of it.
type injection struct {
	id   uint64
	in   *poison
	path string
	r    ranges.Range
	left ranges.Set
}

const unknownSum = -1

func newPoison(id fileid.ID, path string) *poison {
	return &poison{id: id, path: path, sums: map[int64]int64{}}
}

// blocked reports whether zeroing z meets known poison that it can't get rid
// of: in a unit of which z is only a part (fs/dax.c, dax_memzero: EIO).
func (p *poison) blocked(z ranges.Range, unit int64) bool {
	whole := wholeUnits(z, unit)
	for bad := range p.listed.Within(z.Widen(unit)) {
		if !whole.Contains(bad) {
			return true
		}
	}
	return false
}

// due are the touched lines in r, which the next touch finds listed.
func (p *poison) due(r ranges.Range) []ranges.Range {
	return slices.Collect(p.touched.Within(r))
}

// pages are the pages in r that hold poison, in order.
func (p *poison) pages(r ranges.Range) []int64 {
	var out []int64
	for bad := range p.bad.Within(r) {
		for page := ranges.Page(bad.Off).Off; page < bad.End(); page += ranges.PageSize {
			if len(out) == 0 || out[len(out)-1] < page {
				out = append(out, page)
			}
		}
	}
	return out
}

// clear takes all poison out of r.
func (p *poison) clear(r ranges.Range) {
	pages := p.pages(r)
	p.bad.Remove(r)
	p.listed.Remove(r)
	p.known = nil
	p.touched.Remove(r)
	for _, inj := range p.injected {
		if inj.r.Widen(ranges.LineSize).Overlaps(r) {
			inj.left.Remove(r)
		}
	}
	p.forgetSums(pages)
}

// list makes the lines in r known: their units go onto the list.
func (p *poison) list(r ranges.Range, unit int64) {
	p.touched.Remove(r)
	p.listed.Add(r.Widen(unit))
	p.known = nil
}

// withdraw takes the poison of one injection away, except where another one
// lies too, and takes units without poison off the list.
func (p *poison) withdraw(inj *injection, unit int64) {
	p.injected = slices.DeleteFunc(p.injected, func(o *injection) bool { return o == inj })
	gone := inj.left.Slice()
	for _, r := range gone {
		pages := p.pages(r)
		p.bad.Remove(r)
		for _, other := range p.injected {
			for kept := range other.left.Within(r) {
				p.bad.Add(kept)
			}
		}
		p.forgetSums(pages)
	}
	for _, r := range gone {
		for u := r.Widen(unit); !u.Empty(); u = ranges.Between(u.Off+unit, u.End()) {
			if piece := (ranges.Range{Off: u.Off, Len: unit}); !p.bad.Overlaps(piece) {
				p.listed.Remove(piece)
				p.known = nil
			}
		}
		for clean := range p.bad.Gaps(r) {
			p.touched.Remove(clean)
		}
	}
}

// endsWith reports whether the page holds no poison but in gone.
func (p *poison) endsWith(gone *ranges.Set, page int64) bool {
	for bad := range p.bad.Within(ranges.Page(page)) {
		if !gone.Contains(bad) {
			return false
		}
	}
	return true
}

// setSums takes over new checksums of pages.
func (p *poison) setSums(sums map[int64]int64) {
	for page, sum := range sums {
		if p.bad.Overlaps(ranges.Page(page)) {
			p.sums[page] = sum
		}
	}
}

// forgetSums drops the checksums of those of the pages that hold no poison
// any more.
func (p *poison) forgetSums(pages []int64) {
	for _, page := range pages {
		if !p.bad.Overlaps(ranges.Page(page)) {
			delete(p.sums, page)
		}
	}
}
