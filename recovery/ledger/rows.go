package ledger

import (
	"cmp"
	"iter"
	"slices"
	"sort"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// rowMap is the live rows of a file by offset. It packs them: rows that came in
// order, as in a scan, take their own 48 bytes and nothing between them.
type rowMap struct {
	chunks [][]rowAt // in order, none empty, none longer than chunkRows
}

type rowAt struct {
	off int64
	row
}

const chunkRows = 128

// find is where the row at off is or would be: its chunk and its place there.
func (m *rowMap) find(off int64) (c, i int, ok bool) {
	c = max(0, sort.Search(len(m.chunks), func(c int) bool { return m.chunks[c][0].off > off })-1)
	if c < len(m.chunks) {
		i, ok = slices.BinarySearchFunc(m.chunks[c], off, func(r rowAt, off int64) int { return cmp.Compare(r.off, off) })
	}
	return c, i, ok
}

func (m *rowMap) get(off int64) (row, bool) {
	c, i, ok := m.find(off)
	if !ok {
		return row{}, false
	}
	return m.chunks[c][i].row, true
}

func (m *rowMap) set(off int64, w row) {
	c, i, ok := m.find(off)
	switch {
	case ok:
		m.chunks[c][i].row = w
		return
	case len(m.chunks) == 0:
		m.chunks = [][]rowAt{nil}
	case len(m.chunks[c]) == chunkRows:
		at := chunkRows / 2
		if i == chunkRows {
			at = i // rows come in order: leave the chunk full
		}
		m.chunks = slices.Insert(m.chunks, c+1, slices.Clone(m.chunks[c][at:]))
		m.chunks[c] = m.chunks[c][:at]
		if i >= at {
			c, i = c+1, i-at
		}
	}
	m.chunks[c] = slices.Insert(m.chunks[c], i, rowAt{off, w})
}

func (m *rowMap) delete(off int64) {
	c, i, ok := m.find(off)
	if !ok {
		return
	}
	m.chunks[c] = slices.Delete(m.chunks[c], i, i+1)
	if len(m.chunks[c]) == 0 {
		m.chunks = slices.Delete(m.chunks, c, c+1)
		return
	}
	// Two neighbours that fill less than half of one become one.
	for _, left := range []int{c - 1, c} {
		if left >= 0 && left+1 < len(m.chunks) && len(m.chunks[left])+len(m.chunks[left+1]) < chunkRows/2 {
			m.chunks[left] = slices.Concat(m.chunks[left], m.chunks[left+1])
			m.chunks = slices.Delete(m.chunks, left+1, left+2)
			return
		}
	}
}

// trim gives back the room that growing chunks have left.
func (m *rowMap) trim() {
	for c, rows := range m.chunks {
		if cap(rows) > len(rows)+len(rows)/8 {
			m.chunks[c] = slices.Clone(rows)
		}
	}
}

// from yields the rows that begin at off or behind it, in order.
func (m *rowMap) from(off int64) iter.Seq2[int64, row] {
	return func(yield func(int64, row) bool) {
		c, i, _ := m.find(off)
		for ; c < len(m.chunks); c, i = c+1, 0 {
			for _, r := range m.chunks[c][i:] {
				if !yield(r.off, r.row) {
					return
				}
			}
		}
	}
}

// overlapping yields the rows, whole, that have a byte in r, in order.
func (m *rowMap) overlapping(r ranges.Range) iter.Seq[span] {
	return func(yield func(span) bool) {
		if r.Empty() {
			return
		}
		if s, ok := m.before(r.Off); ok && s.End() > r.Off && !yield(s) {
			return
		}
		for off, w := range m.from(r.Off) {
			if off >= r.End() || !yield(spanOf(off, w)) {
				return
			}
		}
	}
}

// before is the last row that begins before off.
func (m *rowMap) before(off int64) (s span, ok bool) {
	c, i, _ := m.find(off)
	if i == 0 {
		if c--; c < 0 {
			return span{}, false
		}
		i = len(m.chunks[c])
	}
	last := m.chunks[c][i-1]
	return spanOf(last.off, last.row), true
}

func spanOf(off int64, w row) span {
	return span{ranges.Range{Off: off, Len: w.length}, w}
}
