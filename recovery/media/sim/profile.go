package sim

import (
	"fmt"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Names of the profiles.
const (
	DAX    = "dax"      // Linux ≥ 5.19: a write of whole pages clears
	DAX518 = "dax-5.18" // Linux ≤ 5.18: only freeing the blocks gets rid of poison
	Line   = "line"     // only the poisoned line fails, and a write of it clears
)

// Profiles is the names of all profiles, in the order in which help texts
// should have them.
func Profiles() []string { return []string{DAX, DAX518, Line} }

// rules is how a memory and its kernel behave; each profile is one row.
// read and write only plan: what they say is done, and recorded, by file.
type rules struct {
	listUnit  int64 // what the kernel's list of known poison counts in
	clearUnit int64 // aligned pieces of this size lose their poison when written or freed whole

	read  func(p *poison, r ranges.Range, size int64) outcome
	write func(p *poison, r ranges.Range) outcome
}

// outcome is what becomes of one system call.
type outcome struct {
	n       int64          // bytes that go through, from the first
	err     error          // if n is 0 and the request was not empty
	met     ranges.Range   // the latent line that a read ran into
	cleared []ranges.Range // whole pieces that a write clears
}

// stopped is an outcome that ends behind n good bytes: short, or if there
// are none the errno (fs/dax.c: "return done ? done : ret").
func stopped(n int64, errno unix.Errno) outcome {
	if n > 0 {
		return outcome{n: n}
	}
	return outcome{err: errno}
}

func rulesOf(profile string) (rules, error) {
	table := map[string]rules{
		DAX:    {ranges.SectorSize, ranges.PageSize, readExtents, writeClearing},
		DAX518: {ranges.SectorSize, ranges.PageSize, readExtents, writeRefused},
		Line:   {ranges.LineSize, ranges.LineSize, readLines, writeLines},
	}
	r, ok := table[profile]
	if !ok {
		return rules{}, fmt.Errorf("no profile %q of simulated poison; there are %v", profile, Profiles())
	}
	return r, nil
}

// extentSize is the model of how files lie on the medium: aligned extents
// of 2 MiB, which is what DAX filesystems strive for.
const extentSize = 2 << 20

// extents are the pieces of r by extent, in order.
func extents(r ranges.Range) iter.Seq[ranges.Range] {
	return func(yield func(ranges.Range) bool) {
		for off := r.Off; off < r.End(); {
			end := min(r.End(), off&^(extentSize-1)+extentSize)
			if !yield(ranges.Between(off, end)) {
				return
			}
			off = end
		}
	}
}

// readExtents is dax_iomap_iter for reads (fs/dax.c, all versions). The list
// is asked about all of (request ∩ extent), in whole pages and not clipped to
// the size: known poison there lets nothing of that extent through.
// Only the copy stops at a latent line.
func readExtents(p *poison, r ranges.Range, size int64) outcome {
	done := int64(0)
	for e := range extents(r) {
		if e.Off >= size {
			break
		}
		if p.listed.Overlaps(e.Widen(ranges.PageSize)) {
			return stopped(done, unix.EIO)
		}
		e = ranges.Between(e.Off, min(e.End(), size))
		if line, ok := first(&p.bad, e); ok {
			o := stopped(done+line.Off-e.Off, unix.EFAULT)
			o.met = ranges.Range{Off: line.Off, Len: 1}.Widen(ranges.LineSize)
			return o
		}
		done += e.Len
	}
	return outcome{n: done}
}

// readLines lets through what lies before the first poisoned line.
func readLines(p *poison, r ranges.Range, size int64) outcome {
	r = ranges.Between(r.Off, min(r.End(), size))
	bad, ok := first(&p.bad, r)
	if !ok {
		return outcome{n: r.Len}
	}
	line := ranges.Range{Off: bad.Off, Len: 1}.Widen(ranges.LineSize)
	if p.listed.Overlaps(line) {
		return stopped(bad.Off-r.Off, unix.EIO)
	}
	o := stopped(bad.Off-r.Off, unix.EFAULT)
	o.met = line
	return o
}

// writeClearing is dax_iomap_iter for writes with pmem_recovery_write
// (Linux ≥ 5.19). The driver takes the pages up to the first bad one, and
// including it unless its bad sector is its first; such a stride is cleared
// if it is whole pages, and else refused, with its good pages (the trap).
func writeClearing(p *poison, r ranges.Range) outcome {
	o := outcome{}
	for e := range extents(r) {
		for pos := e.Off; pos < e.End(); pos = r.Off + o.n {
			rest := ranges.Between(pos, e.End())
			bad, ok := first(&p.listed, rest.Widen(ranges.PageSize))
			if !ok {
				o.n += rest.Len
				continue
			}
			page := ranges.Page(pos).Off
			stride := max(ranges.PageSize, roundUp(bad.Off-page, ranges.PageSize))
			s := rest.Intersect(ranges.Between(pos, page+stride))
			if p.listed.Overlaps(s.Widen(ranges.PageSize)) {
				if s != s.Widen(ranges.PageSize) {
					return stopped(o.n, unix.EFAULT).clearing(o.cleared)
				}
				o.cleared = append(o.cleared, s)
			}
			o.n += s.Len
		}
	}
	return o
}

func (o outcome) clearing(rs []ranges.Range) outcome {
	o.cleared = rs
	return o
}

// writeRefused is dax_iomap_iter before 5.19: known poison in (request ∩
// extent) fails that extent, as for reads.
func writeRefused(p *poison, r ranges.Range) outcome {
	done := int64(0)
	for e := range extents(r) {
		if p.listed.Overlaps(e.Widen(ranges.PageSize)) {
			return stopped(done, unix.EIO)
		}
		done += e.Len
	}
	return outcome{n: done}
}

// writeLines clears the lines that are written whole, latent ones too, and
// stops before a known one of which only a part is written.
func writeLines(p *poison, r ranges.Range) outcome {
	whole := wholeUnits(r, ranges.LineSize)
	o := outcome{n: r.Len}
	for bad := range p.listed.Within(r.Widen(ranges.LineSize)) {
		if bad.Off < whole.Off || whole.Empty() { // the first line, in part
			return stopped(max(0, bad.Off-r.Off), unix.EFAULT)
		}
		if bad.End() > whole.End() { // the last line, in part
			o = stopped(whole.End()-r.Off, unix.EFAULT)
		}
	}
	o.cleared = []ranges.Range{wholeUnits(ranges.Range{Off: r.Off, Len: o.n}, ranges.LineSize)}
	return o
}

// first is the first piece of the set in r.
func first(s *ranges.Set, r ranges.Range) (ranges.Range, bool) {
	for piece := range s.Within(r) {
		return piece, true
	}
	return ranges.Range{}, false
}

// wholeUnits is the part of r that consists of whole units.
func wholeUnits(r ranges.Range, unit int64) ranges.Range {
	return ranges.Between(roundUp(r.Off, unit), r.End()&^(unit-1))
}

// tail is what a filesystem zeroes of the page that holds the byte at from,
// on the way to end; empty where from begins a page.
func tail(from, end int64) ranges.Range {
	return ranges.Between(from, min(end, roundUp(from, ranges.PageSize)))
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
