package soak

import (
	"slices"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// content is what is known of one file, byte by byte.
type content struct {
	id    int
	data  []byte // what was last written
	links int
	unit  int64 // what known poison costs at least: a sector, or a line

	// hurt is the bytes that may be lost. After a check it is those that are.
	hurt *ranges.Set
	// latent is where there may be poison that nobody has met: no write can
	// tell, and none of part of a page ends it.
	latent *ranges.Set
	// freed is what left hurt since the mount. A kill -9 may take the last second's
	// changes of the ledger back: stale is the bytes of which it may still say
	// that they were lost, and which are not.
	freed, stale *ranges.Set
	// copied is zeros that copy_file_range brought since the mount: their rows
	// are on disk within a second only, the zeros at once. After a kill -9 those in
	// unsaid may be in no row.
	copied, unsaid *ranges.Set
	forgotten      int // bytes of which that came true
}

func newContent(id int, unit int64) *content {
	return &content{id: id, unit: unit, links: 1, hurt: ranges.Of(), latent: ranges.Of(), freed: ranges.Of(), stale: ranges.Of(),
		copied: ranges.Of(), unsaid: ranges.Of()}
}

func (c *content) size() int64 { return int64(len(c.data)) }

func (c *content) whole() ranges.Range { return ranges.Range{Len: c.size()} }

func (c *content) clone() *content {
	d := *c
	d.data = slices.Clone(c.data)
	for _, s := range []**ranges.Set{&d.hurt, &d.latent, &d.freed, &d.stale, &d.copied, &d.unsaid} {
		*s = ranges.Of((*s).Slice()...)
	}
	return &d
}

// write is new data of the application: the bytes are not lost any more, except
// where poison is that nobody has met.
func (c *content) write(off int64, data []byte) {
	r := ranges.Range{Off: off, Len: int64(len(data))}
	if r.Empty() {
		return
	}
	c.resize(max(c.size(), r.End()))
	copy(c.data[off:], data)
	if c.unit == ranges.LineSize { // there a write of a whole line ends its poison unseen
		c.latent.Remove(inner(r, c.unit))
	}
	c.release(r)
}

// zero is punch hole and zero range, within the file.
func (c *content) zero(r ranges.Range) {
	c.latent.Remove(inner(r, ranges.PageSize)) // their blocks are given back
	if r = r.Intersect(c.whole()); !r.Empty() {
		clear(c.data[r.Off:r.End()])
		c.release(r)
	}
}

// resize is truncate(2), down or up.
func (c *content) resize(size int64) {
	old := c.size()
	if size < old {
		c.data = c.data[:size:size]
		c.latent.Remove(inner(ranges.Between(size, endless), ranges.PageSize)) // their blocks are given back
		c.release(ranges.Between(size, endless))
		return
	}
	c.data = append(c.data, make([]byte, size-old)...)
	c.release(ranges.Between(old, size))
}

const endless = 1 << 60

// release takes bytes out of the lost ones.
func (c *content) release(r ranges.Range) {
	for gone := range c.hurt.Within(r) {
		c.freed.Add(gone)
	}
	c.hurt.Remove(r)
	for left := range c.latent.Within(r.Intersect(c.whole())) {
		c.hurt.Add(left)
	}
}

// poison is poison under r.
func (c *content) poison(r ranges.Range, latent bool) {
	r = r.Widen(c.unit)
	if latent {
		c.latent.Add(r)
	}
	c.hurt.Add(r.Intersect(c.whole()))
}

// copyTo copies as copy_file_range does: what is lost stays lost in the copy.
func (c *content) copyTo(dst *content, r ranges.Range, off int64) {
	if r.Empty() {
		return
	}
	shift := off - r.Off
	hurt, stale := slices.Collect(c.hurt.Within(r)), slices.Collect(c.stale.Within(r))
	dst.write(off, slices.Clone(c.data[r.Off:r.End()]))
	for _, h := range hurt {
		dst.hurt.Add(h.Shift(shift))
		dst.copied.Add(h.Shift(shift))
	}
	for _, s := range stale { // the ledger says lost of them, and so says it of the copy
		dst.stale.Add(s.Shift(shift))
	}
}

// met says that every byte of r was read from the medium.
func (c *content) met(r ranges.Range) { c.latent.Remove(r) }

// crashed says that the ledger may have lost the changes since the mount.
func (c *content) crashed() {
	for r := range c.freed.All() {
		c.stale.Add(r)
	}
	for r := range c.copied.All() {
		c.unsaid.Add(r)
	}
}

// inner is the part of r that consists of whole units.
func inner(r ranges.Range, unit int64) ranges.Range {
	return ranges.Between((r.Off+unit-1)&^(unit-1), r.End()&^(unit-1))
}

// oracle knows the files of one worker.
type oracle struct {
	unit  int64
	files map[string]*content // by name; hard links share one
	made  int
}

func newOracle(unit int64) *oracle { return &oracle{unit: unit, files: map[string]*content{}} }

// apply follows an operation that has succeeded.
func (o *oracle) apply(op op, n int64) {
	f, r := o.files[op.Name], op.Range
	switch op.Verb {
	case create:
		o.made++
		o.files[op.Name] = newContent(o.made, o.unit)
	case reset:
		f.resize(0)
	case write, directWrite:
		f.write(r.Off, op.data(ranges.Range{Off: r.Off, Len: n}))
	case appendTo:
		f.write(f.size(), op.data(ranges.Range{Off: r.Off, Len: n}))
	case store, store2:
		for _, piece := range op.stores() {
			f.write(piece.Off, op.data(piece))
		}
	case directRead:
		f.met(ranges.Range{Off: r.Off, Len: n})
	case truncate:
		f.resize(r.Off)
	case punch, zero, zeroKeep:
		if op.Verb == zero {
			f.resize(max(f.size(), r.End()))
		}
		f.zero(r)
	case allocate:
		f.resize(max(f.size(), r.End()))
	case copyRange:
		f.copyTo(o.files[op.To], ranges.Range{Off: r.Off, Len: n}, op.OffTo)
	case known, knownKept, latent, latentKept:
		f.poison(r, op.Verb == latent || op.Verb == latentKept)
	case rename, swap, link, unlink, reopen:
		o.applyNames(op)
	}
}

func (o *oracle) applyNames(op op) {
	f, other := o.files[op.Name], o.files[op.To]
	switch op.Verb {
	case link:
		f.links++
		o.files[op.To] = f
	case unlink:
		o.removed(op, f)
		delete(o.files, op.Name)
	case swap:
		o.files[op.Name], o.files[op.To] = other, f
	case reopen:
		if f != nil && op.Name[0] == '!' {
			delete(o.files, op.Name)
		}
	case rename:
		if f == other {
			return // two links of one file: POSIX has it so
		}
		if other != nil {
			o.removed(op, other)
		}
		o.files[op.To] = f
		delete(o.files, op.Name)
	}
}

// removed keeps a file that loses a name, as one that is still open.
func (o *oracle) removed(op op, f *content) {
	f.links--
	o.files[op.orphan()] = f
}

// closeAll forgets the files without a name.
func (o *oracle) closeAll() {
	for name := range o.files {
		if name[0] == '!' {
			delete(o.files, name)
		}
	}
}
