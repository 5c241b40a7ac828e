package recovery

import (
	"errors"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Read reads into p from off. The count is short only at the true end of the
// file; lost bytes are zero, and were recorded before Read returns. An error
// means that not one byte may be used: the failure was no poison
// (*OutageError), or the semantics want it (*PoisonError).
func (f *File) Read(p []byte, off int64, who Caller) (int, error) {
	for {
		n, err := f.read(p, off, who)
		if !errors.Is(err, errShrunk) {
			return n, err
		}
	}
}

// errShrunk says that the file became shorter while it was being read.
var errShrunk = errors.New("the file shrank")

func (f *File) read(p []byte, off int64, who Caller) (int, error) {
	f.tryFinishOpen()
	r, writes, n, err := f.readShared(p, off, who)
	if r == nil {
		return n, err
	}
	// Nothing is given up or learnt while a write may be under way: it could be
	// clearing what has just failed.
	f.ino.mu.Lock()
	defer f.ino.mu.Unlock()
	if f.ino.writes.Load() != writes {
		if r, err = f.tryWithin(p, off, 0, f.ino.writes.Load()); r == nil {
			return 0, err
		}
	}
	pages, err := r.settle(who)
	if err != nil {
		return 0, err
	}
	f.recordRead(r.want, pages, who)
	return len(r.buf), nil
}

// readShared is Read as far as it goes with the inode shared: one pread, and
// what is known of bad pages. Where more is to be done it returns the read so
// far, and the count of writes that it is good for.
func (f *File) readShared(p []byte, off int64, who Caller) (r *recoveryRead, writes uint64, n int, err error) {
	f.ino.mu.RLock()
	defer f.ino.mu.RUnlock()
	want := ranges.Range{Off: off, Len: int64(len(p))}
	d := f.ino.damage.Load()
	writes = f.ino.writes.Load()
	if d == nil || !d.concernsRead(want) {
		n, err = f.below.Pread(p, off)
		if err == nil && n == len(p) {
			return nil, 0, n, nil
		}
		if err != nil && !mayBePoison(err) {
			return nil, 0, 0, f.trouble(want, err)
		}
		if err == nil && f.endsAt(off+int64(n)) {
			return nil, 0, n, nil
		}
	}
	if !f.engine.Semantics.Recover {
		n, err = f.readStrictly(p, off, who)
		return nil, 0, n, err
	}
	r, err = f.tryWithin(p, off, int64(n), writes)
	if r == nil || !r.isSettled() {
		return r, writes, 0, err
	}
	f.recordRead(r.want, r.known, who)
	return nil, 0, len(r.buf), nil
}

// tryWithin is try on what of the range lies within the file now: a bad sector
// past the end must not fail the read. It returns nil where nothing does.
func (f *File) tryWithin(p []byte, off, got int64, writes uint64) (*recoveryRead, error) {
	st, err := f.stat()
	if err != nil {
		return nil, err
	}
	want := ranges.Range{Off: off, Len: int64(len(p))}.Intersect(ranges.Between(0, st.Size))
	if want.Empty() {
		return nil, nil
	}
	return f.try(p[:want.Len], want, got, st.Size, writes)
}

// endsAt reports whether the file really ends at or before off.
func (f *File) endsAt(off int64) bool {
	st, err := f.below.Stat()
	return err == nil && off >= st.Size
}
