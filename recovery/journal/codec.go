package journal

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// encoder collects a payload; the package comment has the format.
type encoder []byte

func (e *encoder) uint(v uint64) { *e = binary.AppendUvarint(*e, v) }
func (e *encoder) int(v int64)   { *e = binary.AppendVarint(*e, v) }

func (e *encoder) bool(v bool) {
	if v {
		e.uint(1)
		return
	}
	e.uint(0)
}

func (e *encoder) text(s string) {
	e.uint(uint64(len(s)))
	*e = append(*e, s...)
}

func (e *encoder) bytes(b []byte) {
	e.uint(uint64(len(b)))
	*e = append(*e, b...)
}

func (e *encoder) rng(r ranges.Range) {
	e.int(r.Off)
	e.int(r.Len)
}

func (e *encoder) ranges(rs []ranges.Range) {
	e.uint(uint64(len(rs)))
	for _, r := range rs {
		e.rng(r)
	}
}

func (e *encoder) file(id fileid.ID) {
	e.uint(id.Ino)
	e.int(id.Btime)
	e.text(id.Handle)
}

var errPayload = errors.New("the payload does not have the format of its type")

// decoder takes a payload apart. After the first fault everything is zero, and
// end says so.
type decoder struct {
	b      []byte
	faulty bool
}

func (d *decoder) end() error {
	if d.faulty || len(d.b) > 0 {
		return errPayload
	}
	return nil
}

func (d *decoder) take(n int) {
	if n <= 0 { // what encoding/binary says of a number cut short or too large
		d.faulty, d.b = true, nil
		return
	}
	d.b = d.b[n:]
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	d.take(n)
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	d.take(n)
	return v
}

func (d *decoder) bool() bool { return d.uint() != 0 }

// bytes is a part of the payload, not a copy; nil if empty.
func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.faulty, d.b = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) rng() ranges.Range { return ranges.Range{Off: d.int(), Len: d.int()} }

func (d *decoder) ranges() []ranges.Range {
	n := d.uint()
	if n > uint64(len(d.b))/2 { // each takes two bytes or more
		d.faulty, d.b = true, nil
		return nil
	}
	var rs []ranges.Range
	for range n {
		rs = append(rs, d.rng())
	}
	return rs
}

func (d *decoder) file() fileid.ID {
	return fileid.ID{Ino: d.uint(), Btime: d.int(), Handle: d.text()}
}

// sums come last, and not at all where there are none: as in records from before
// there were any.
func (e *encoder) sums(sums []uint32) {
	if len(sums) == 0 {
		return
	}
	e.uint(uint64(len(sums)))
	for _, sum := range sums {
		e.uint(uint64(sum))
	}
}

func (d *decoder) sums() []uint32 {
	if len(d.b) == 0 {
		return nil
	}
	n := d.uint()
	if n == 0 || n > MaxPages {
		d.faulty, d.b = true, nil
		return nil
	}
	sums := make([]uint32, 0, n)
	for range n {
		v := d.uint()
		if v > math.MaxUint32 {
			d.faulty = true
		}
		sums = append(sums, uint32(v))
	}
	return sums
}
