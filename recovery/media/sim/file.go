package sim

import (
	"hash/crc32"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// file is an open file. Where it has no poison, which it remembers, every
// call goes straight down.
type file struct {
	medium *Medium
	below  media.File

	key  atomic.Pointer[string] // fileid.ID.Key, once asked for
	seen atomic.Uint64          // 2·epoch + 1 if the file had poison in that epoch
}

var _ media.File = (*file)(nil)

func (f *file) Fd() int { return f.below.Fd() }

// clean reports whether the file has no poison.
func (f *file) clean() bool {
	epoch := f.medium.epoch.Load()
	if seen := f.seen.Load(); seen>>1 == epoch {
		return seen&1 == 0
	}
	f.medium.mu.RLock()
	defer f.medium.mu.RUnlock()
	if len(f.medium.files) == 0 {
		return true
	}
	key, ok := f.identity()
	if !ok {
		return true // the call that is to follow meets the same trouble
	}
	seen := f.medium.epoch.Load() << 1 // stands still while mu is held
	if f.medium.files[key] != nil {
		seen |= 1
	}
	f.seen.Store(seen)
	return seen&1 == 0
}

// identity is the key of the file's poison; not ok if the kernel won't tell.
func (f *file) identity() (string, bool) {
	if key := f.key.Load(); key != nil {
		return *key, true
	}
	id, err := fileid.Of(f.Fd())
	if err != nil {
		return "", false
	}
	key := id.Key()
	f.key.Store(&key)
	return key, true
}

// poison is the file's poison, or nil. The caller holds m.mu, shared at least.
func (f *file) poison() *poison {
	key, _ := f.identity()
	return f.medium.files[key]
}

func (f *file) Pread(b []byte, off int64) (int, error) {
	if f.clean() || off < 0 || len(b) == 0 {
		return f.below.Pread(b, off)
	}
	if n, err, ok := f.readShared(b, off); ok {
		return n, err
	}
	m := f.medium
	m.mu.Lock()
	defer m.mu.Unlock()
	p, size, err := f.begin()
	if err != nil {
		return 0, err
	}
	if p == nil || off >= size {
		return f.below.Pread(b, off)
	}
	r := ranges.Range{Off: off, Len: int64(len(b))}
	f.promote(p, ranges.Between(off, min(r.End(), size)))
	o := m.rules.read(p, r, size)
	switch {
	case o.met.Empty():
	case o.n > 0:
		m.commit(record{Op: opChange, File: p.id, Touch: []ranges.Range{o.met}})
	default:
		m.commit(record{Op: opChange, File: p.id, List: []ranges.Range{o.met}})
	}
	return f.read(b, off, o)
}

// readShared is Pread where that changes nothing, so that readers of a file
// don't wait for each other; otherwise not ok.
func (f *file) readShared(b []byte, off int64) (n int, err error, ok bool) {
	m := f.medium
	m.mu.RLock()
	defer m.mu.RUnlock()
	p := f.poison()
	if p == nil || !p.verified {
		return 0, nil, false
	}
	r := ranges.Range{Off: off, Len: int64(len(b))}
	if p.touched.Overlaps(r) {
		return 0, nil, false
	}
	o := m.rules.read(p, r, r.End())
	if o.n < r.Len { // only then does it matter where the file ends
		st, err := f.below.Stat()
		if err != nil || off >= st.Size {
			return 0, nil, false
		}
		o = m.rules.read(p, r, st.Size)
	}
	if !o.met.Empty() {
		return 0, nil, false
	}
	n, err = f.read(b, off, o)
	return n, err, true
}

func (f *file) read(b []byte, off int64, o outcome) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	return f.below.Pread(b[:min(o.n, int64(len(b)))], off)
}

func (f *file) Pwrite(b []byte, off int64, uid uint32) (int, error) {
	if f.clean() || off < 0 || len(b) == 0 {
		return f.below.Pwrite(b, off, uid)
	}
	m := f.medium
	m.mu.Lock()
	defer m.mu.Unlock()
	p, size, err := f.begin()
	if err != nil {
		return 0, err
	}
	if p == nil {
		return f.below.Pwrite(b, off, uid)
	}
	r := ranges.Range{Off: off, Len: int64(len(b))}
	unit := m.rules.clearUnit
	gap := tail(size, off)
	f.promote(p, r.Widen(unit), gap.Widen(unit))
	if p.blocked(gap, unit) {
		return 0, unix.EIO
	}
	o := m.rules.write(p, r)
	if o.err != nil {
		return 0, o.err
	}
	n, err := f.below.Pwrite(b[:o.n], off, uid)
	if err != nil {
		return n, err
	}
	written := ranges.Range{Off: off, Len: int64(n)}
	cleared := []ranges.Range{wholeUnits(gap, unit)}
	for _, c := range o.cleared {
		cleared = append(cleared, wholeUnits(c.Intersect(written), unit))
	}
	f.changed(p, cleared, written, gap)
	return n, nil
}

func (f *file) Truncate(size int64) error {
	if f.clean() || size < 0 {
		return f.below.Truncate(size)
	}
	m := f.medium
	m.mu.Lock()
	defer m.mu.Unlock()
	p, old, err := f.begin()
	if err != nil {
		return err
	}
	if p == nil {
		return f.below.Truncate(size)
	}
	unit := m.rules.clearUnit
	zeroed := tail(old, size)
	if size <= old {
		zeroed = tail(size, roundUp(size, ranges.PageSize))
	}
	f.promote(p, zeroed.Widen(unit))
	if p.blocked(zeroed, unit) {
		return unix.EIO
	}
	if err := f.below.Truncate(size); err != nil {
		return err
	}
	beyond := ranges.Between(roundUp(size, ranges.PageSize), everything.End())
	f.changed(p, []ranges.Range{wholeUnits(zeroed, unit), beyond}, zeroed)
	return nil
}

func (f *file) Allocate(mode uint32, off, length int64, uid uint32) error {
	if f.clean() || off < 0 || length <= 0 {
		return f.below.Allocate(mode, off, length, uid)
	}
	m := f.medium
	m.mu.Lock()
	defer m.mu.Unlock()
	p, size, err := f.begin()
	if err != nil {
		return err
	}
	if p == nil {
		return f.below.Allocate(mode, off, length, uid)
	}
	var zeroed ranges.Range
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0, unix.FALLOC_FL_UNSHARE_RANGE:
	case unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE:
		zeroed = ranges.Range{Off: off, Len: length}
	default:
		return unix.EOPNOTSUPP // FUSE does not hand these down; poison can't be moved
	}
	var grown ranges.Range // what of the tail page is zeroed on the way to the new end
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		grown = tail(size, off+length)
	}
	return f.zero(p, request{mode, ranges.Range{Off: off, Len: length}, uid}, zeroed, grown)
}

// request is an fallocate.
type request struct {
	mode uint32
	r    ranges.Range
	uid  uint32
}

// zero is an Allocate that zeroes two ranges, in this order. The caller holds m.mu.
func (f *file) zero(p *poison, req request, zeroed, grown ranges.Range) error {
	unit := f.medium.rules.clearUnit
	f.promote(p, zeroed.Widen(unit), grown.Widen(unit))
	if p.blocked(zeroed, unit) {
		return f.zeroUntilRefused(p, req)
	}
	whole := wholeUnits(zeroed, unit)
	rest := ranges.Of(grown)
	rest.Remove(whole)
	for r := range rest.All() {
		if p.blocked(r, unit) {
			return unix.EIO
		}
	}
	if err := f.below.Allocate(req.mode, req.r.Off, req.r.Len, req.uid); err != nil {
		return err
	}
	f.changed(p, []ranges.Range{whole, wholeUnits(grown, unit)}, zeroed, grown)
	return nil
}

// zeroUntilRefused zeroes what XFS has zeroed when it meets a page that it can't
// zero a part of: first the whole pages, then the edge in front, and the size is
// not reached (fs/xfs/xfs_bmap_util.c, xfs_free_file_space; tests/lab/truth holds
// it against Linux 6.1 and 6.12).
func (f *file) zeroUntilRefused(p *poison, req request) error {
	unit := f.medium.rules.clearUnit
	whole := wholeUnits(req.r, unit)
	done := []ranges.Range{whole}
	if front := ranges.Between(req.r.Off, min(req.r.End(), roundUp(req.r.Off, unit))); !p.blocked(front, unit) {
		done = append(done, front)
	}
	for _, piece := range done {
		if piece.Empty() {
			continue
		}
		if err := f.below.Allocate(req.mode|unix.FALLOC_FL_KEEP_SIZE, piece.Off, piece.Len, req.uid); err != nil {
			return err
		}
	}
	f.changed(p, []ranges.Range{whole}, done...)
	return unix.EIO
}

func (f *file) Control(avoid *ranges.Set) error { return f.below.Control(avoid) }

// Sync makes the end of poison as durable as the data that ended it.
func (f *file) Sync(full bool) error {
	if err := f.below.Sync(full); err != nil {
		return err
	}
	f.medium.mu.Lock()
	defer f.medium.mu.Unlock()
	_ = f.medium.settle() // the data is durable, and that was asked; Inject, Remove and Clear report a store that fails
	return nil
}

func (f *file) Stat() (media.Stat, error) { return f.below.Stat() }

func (f *file) SetMtime(ns int64) error { return f.below.SetMtime(ns) }

func (f *file) IsHole(r ranges.Range) (bool, error) { return f.below.IsHole(r) }

// begin is the begin of a call on a file with poison: what the poison is, or
// nil, and the size. The caller holds m.mu.
func (f *file) begin() (*poison, int64, error) {
	p := f.poison()
	if p == nil {
		return nil, 0, nil
	}
	f.medium.verify(p, f)
	if p.bad.Empty() {
		return nil, 0, nil
	}
	st, err := f.below.Stat()
	if err != nil {
		return nil, 0, err
	}
	return p, st.Size, nil
}

// promote lists the touched lines in rs: the kernel's record has come by now.
// The caller holds m.mu.
func (f *file) promote(p *poison, rs ...ranges.Range) {
	var due []ranges.Range
	for _, r := range rs {
		due = append(due, p.due(r)...)
	}
	if len(due) > 0 {
		f.medium.commit(record{Op: opChange, File: p.id, List: due})
	}
}

// changed records, after the bytes below have changed in the ranges written,
// that the poison in cleared is gone, and new checksums of pages where some
// is left. The caller holds m.mu.
func (f *file) changed(p *poison, cleared []ranges.Range, written ...ranges.Range) {
	gone := ranges.Of(cleared...)
	rec := record{Op: opChange, File: p.id, Sums: map[int64]int64{}}
	for c := range gone.All() {
		if p.bad.Overlaps(c) {
			rec.Clear = append(rec.Clear, c)
		}
	}
	for _, w := range written {
		for _, page := range p.pages(w.Widen(ranges.PageSize)) {
			if !p.endsWith(gone, page) {
				rec.Sums[page] = f.sumOrUnknown(page)
			}
		}
	}
	if len(rec.Clear)+len(rec.Sums) > 0 {
		f.medium.commit(rec)
	}
}

// sumOrUnknown is for a page that was just written: where it can't be read
// back through this descriptor, no sum is better than the old one.
func (f *file) sumOrUnknown(page int64) int64 {
	sum, err := f.sum(page)
	if err != nil {
		return unknownSum
	}
	return sum
}

// sum is the checksum of the page of stored bytes at off; what is past the
// end of the file counts as zero.
func (f *file) sum(off int64) (int64, error) {
	var page [ranges.PageSize]byte
	for n := 0; n < len(page); {
		got, err := f.below.Pread(page[n:], off+int64(n))
		if err != nil {
			return 0, err
		}
		if got == 0 {
			break
		}
		n += got
	}
	return int64(crc32.Checksum(page[:], crc32.MakeTable(crc32.Castagnoli))), nil
}
