package ranges

import (
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/tidwall/btree"
)

// Set is an ordered set of bytes, kept as disjoint, non-adjacent ranges in a
// B-tree. Every operation costs O((k+1) log n) for k ranges touched of n held.
// The zero Set is empty and ready. A Set is not safe for concurrent change;
// queries may run at once.
type Set struct {
	tree  btree.Map[int64, int64] // Off → Len; disjoint, non-adjacent, no empty range
	bytes int64
}

// Of is the set of the bytes in rs.
func Of(rs ...Range) *Set {
	s := &Set{}
	for _, r := range rs {
		s.Add(r)
	}
	return s
}

// Add puts every byte of r into the set.
func (s *Set) Add(r Range) {
	if r.Empty() {
		return
	}
	off, end := r.Off, r.End()
	// One byte wider on each side, so that neighbours that only touch merge too.
	wider := Between(max(off, 1)-1, min(end, math.MaxInt64-1)+1)
	for _, o := range slices.Collect(s.overlapping(wider)) {
		off, end = min(off, o.Off), max(end, o.End())
		s.drop(o)
	}
	s.put(Between(off, end))
}

// Remove takes every byte of r out of the set.
func (s *Set) Remove(r Range) {
	for _, o := range slices.Collect(s.overlapping(r)) {
		s.drop(o)
		s.put(Between(o.Off, min(o.End(), r.Off)))
		s.put(Between(max(o.Off, r.End()), o.End()))
	}
}

// Overlaps reports whether the set and r have a byte in common.
func (s *Set) Overlaps(r Range) bool {
	for range s.Within(r) {
		return true
	}
	return false
}

// Contains reports whether every byte of r is in the set.
func (s *Set) Contains(r Range) bool {
	if r.Empty() {
		return true
	}
	for o := range s.Within(r) {
		return o == r // the first piece is the whole, or something is missing
	}
	return false
}

// Within yields the pieces of the set that lie in r, clipped to r, in order.
// The set must not change while the pieces are being walked.
func (s *Set) Within(r Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for o := range s.overlapping(r) {
			if !yield(o.Intersect(r)) {
				return
			}
		}
	}
}

// Gaps yields the pieces of r that are not in the set, in order.
func (s *Set) Gaps(r Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		pos := r.Off
		for o := range s.Within(r) {
			if o.Off > pos && !yield(Between(pos, o.Off)) {
				return
			}
			pos = o.End()
		}
		if pos < r.End() {
			yield(Between(pos, r.End()))
		}
	}
}

// All yields the ranges of the set in order.
func (s *Set) All() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		s.tree.Scan(func(off, length int64) bool {
			return yield(Range{Off: off, Len: length})
		})
	}
}

// Slice is the ranges of the set in order; never nil, so that it prints as [].
func (s *Set) Slice() []Range {
	out := make([]Range, 0, s.tree.Len())
	for r := range s.All() {
		out = append(out, r)
	}
	return out
}

// Count is the number of disjoint ranges.
func (s *Set) Count() int { return s.tree.Len() }

// Bytes is the number of bytes in the set.
func (s *Set) Bytes() int64 { return s.bytes }

// Empty reports whether the set holds no byte.
func (s *Set) Empty() bool { return s.tree.Len() == 0 }

func (s *Set) String() string {
	parts := make([]string, 0, s.tree.Len())
	for r := range s.All() {
		parts = append(parts, r.String())
	}
	return "{" + strings.Join(parts, " ") + "}"
}

// overlapping yields the held ranges, whole, that have a byte in common with r.
func (s *Set) overlapping(r Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		if r.Empty() {
			return
		}
		start := r.Off
		s.tree.Descend(r.Off, func(off, length int64) bool {
			if off+length > r.Off {
				start = off
			}
			return false
		})
		s.tree.Ascend(start, func(off, length int64) bool {
			return off < r.End() && yield(Range{Off: off, Len: length})
		})
	}
}

func (s *Set) put(r Range) {
	if r.Empty() {
		return
	}
	s.tree.Set(r.Off, r.Len)
	s.bytes += r.Len
}

func (s *Set) drop(r Range) {
	s.tree.Delete(r.Off)
	s.bytes -= r.Len
}
