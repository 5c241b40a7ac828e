// Package ranges is the arithmetic of byte ranges: the one range type of the
// project, and the ordered set of disjoint ranges.
//
// All offsets and lengths are bytes.
package ranges

import (
	"fmt"
	"math"
)

// The three sizes at which a medium fails or is cleared.
const (
	LineSize   = 64   // what a CPU loses at once: one cache line
	SectorSize = 512  // what /sys/block/*/badblocks counts in
	PageSize   = 4096 // what a DAX file read loses at once, and what one write clears
)

// Range is the half-open byte interval [Off, Off+Len). Off is not negative,
// and Off+Len does not overflow.
type Range struct {
	Off int64 `json:"offset"`
	Len int64 `json:"length"`
}

// Between is the range from off up to, not including, end; empty if end <= off.
func Between(off, end int64) Range {
	return Range{Off: off, Len: max(0, end-off)}
}

// Page is the page that holds the byte at off. The very last one has a byte less:
// no file is longer than 2^63 - 1.
func Page(off int64) Range {
	off &^= PageSize - 1
	return Between(off, min(off, math.MaxInt64-PageSize)+PageSize)
}

// End is the offset of the first byte behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Empty reports whether the range holds no byte.
func (r Range) Empty() bool { return r.Len <= 0 }

// Contains reports whether every byte of o is in r. The empty range is in
// every range.
func (r Range) Contains(o Range) bool {
	return o.Empty() || (o.Off >= r.Off && o.End() <= r.End())
}

// Overlaps reports whether r and o have a byte in common.
func (r Range) Overlaps(o Range) bool {
	return !r.Intersect(o).Empty()
}

// Intersect is the part that r and o have in common; empty if there is none.
func (r Range) Intersect(o Range) Range {
	return Between(max(r.Off, o.Off), min(r.End(), o.End()))
}

// Widen is the smallest range of whole units of the given size, a power of
// two, that contains r. The last unit of all offsets, which has no end that can
// be said, is cut off a byte early.
func (r Range) Widen(unit int64) Range {
	if r.Empty() {
		return r
	}
	last := (r.End() - 1) | (unit - 1) // the last byte, so that nothing overflows
	return Between(r.Off&^(unit-1), min(last, math.MaxInt64-1)+1)
}

// Shift is r moved by delta bytes.
func (r Range) Shift(delta int64) Range { return Range{Off: r.Off + delta, Len: r.Len} }

func (r Range) String() string { return fmt.Sprintf("[%d +%d)", r.Off, r.Len) }
