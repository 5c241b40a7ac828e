package recovery

import (
	"errors"
	"math"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Read reads into p from off. The count is short only at the true end of the
// file; lost bytes are zero, and were recorded before Read returns. An error
// means that not one byte may be used: the failure was no poison
// (*OutageError), or the semantics want it (*PoisonError).
//
// A clean read takes no lock, so that readers on several cores share no cache
// line that any of them writes. That is right because whatever changes a page
// other than by an ordinary write, or learns something about it, holds the inode
// exclusively, and has made epoch odd before and makes it even after. A
// read that finds epoch even and the same before and after its pread had no such
// section overlap it: one that was on is seen by the first look, one that
// began by the second. Then it is as good as a read with the lock held shared:
// damage, looked at after epoch, is all that was learnt before, and what a page
// that failed has to go through begins with the failure. All else is looked at
// again under the lock.
func (f *File) Read(p []byte, off int64, who Caller) (int, error) {
	writes := f.ino.writes.Load() // before epoch: see attempt
	epoch := f.ino.epoch.Load()
	if epoch%2 != 0 || f.ino.damage.Load() != nil {
		return f.readOn(p, off, who, attempt{})
	}
	n, err := f.below.Pread(p, off)
	if n == len(p) && err == nil && f.ino.epoch.Load() == epoch {
		return n, nil
	}
	return f.readOn(p, off, who, attempt{made: true, n: n, err: err, writes: writes})
}

// readOn is Read where that takes more than one attempt.
func (f *File) readOn(p []byte, off int64, who Caller, first attempt) (int, error) {
	for {
		n, err := f.read(p, off, who, first)
		if !errors.Is(err, errShrunk) {
			return n, err
		}
		first = attempt{}
	}
}

// attempt is a pread that was made without a lock. It still stands if the
// inode's count of writes is what it was before the look at epoch: then no
// section that changes pages overlapped it.
type attempt struct {
	made   bool
	n      int
	err    error
	writes uint64
}

// start is what attempts have left for one to begin with.
type start struct {
	got     int64   // bytes that are there: the attempt stands, and stopped short behind them
	writes  uint64  // the inode's count from before the first byte was read
	touched []int64 // where attempts stopped short that don't stand: the first touch of latent poison names the line, the second only the page
}

// stopped is where in the file, as it is now, the attempt at want stopped short;
// nil if it did not.
func (f *File) stopped(a attempt, want ranges.Range) []int64 {
	at := want.Off + int64(a.n)
	if !a.made || a.err != nil || a.n == 0 || int64(a.n) == want.Len || f.endsAt(at) {
		return nil
	}
	return []int64{at}
}

// errShrunk says that the file became shorter while it was being read.
var errShrunk = errors.New("the file shrank")

func (f *File) read(p []byte, off int64, who Caller, first attempt) (int, error) {
	p = p[:min(int64(len(p)), math.MaxInt64-off)] // no file has more
	f.tryFinishOpen(ranges.Range{Off: off, Len: int64(len(p))})
	r, n, err := f.readShared(p, off, who, first)
	if r == nil {
		return n, err
	}
	// Nothing is given up or learnt while a write may be under way: it could be
	// clearing what has just failed.
	f.ino.lock()
	defer f.ino.unlock()
	if now := f.ino.writes.Load(); now != r.writes || f.ino.damage.Load() != r.damage {
		if r, err = f.tryWithin(p, off, start{writes: now, touched: r.touched}); r == nil {
			return 0, err
		}
	}
	defer f.ino.dropBlank(r.damage)
	bad, err := r.settle(who)
	if err != nil {
		return 0, err
	}
	f.recordRead(r, bad, who)
	return len(r.buf), nil
}

// readShared is Read as far as it goes with the inode shared: one pread, and
// what is known of bad pages. Where more is to be done it returns the read so
// far.
func (f *File) readShared(p []byte, off int64, who Caller, first attempt) (r *recoveryRead, n int, err error) {
	f.ino.mu.RLock()
	defer f.ino.mu.RUnlock()
	want := ranges.Range{Off: off, Len: int64(len(p))}
	d := f.ino.damage.Load()
	from := start{writes: f.ino.writes.Load()}
	stands := first.made && first.writes == from.writes
	if !stands {
		from.touched = f.stopped(first, want)
	}
	switch {
	case from.touched != nil: // and not once more
	case stands || d == nil || !d.concernsRead(want):
		n, err = first.n, first.err
		if !stands {
			n, err = f.below.Pread(p, off)
		}
		if err == nil && n == len(p) {
			return nil, n, nil
		}
		if err != nil && !mayBePoison(err) {
			return nil, 0, f.trouble(want, err)
		}
		if err == nil && f.endsAt(off+int64(n)) {
			return nil, n, nil
		}
		from.got = int64(n)
	}
	if !f.engine.Semantics.Recover {
		n, err = f.readStrictly(p, off, who)
		return nil, n, err
	}
	r, err = f.tryWithin(p, off, from)
	if r == nil || !r.isSettled() {
		return r, 0, err
	}
	f.recordRead(r, nil, who)
	return nil, len(r.buf), nil
}

// tryWithin is try on what of the range lies within the file now: a bad sector
// past the end must not fail the read. It returns nil where nothing does.
func (f *File) tryWithin(p []byte, off int64, from start) (*recoveryRead, error) {
	st, err := f.stat()
	if err != nil {
		return nil, err
	}
	want := ranges.Range{Off: off, Len: int64(len(p))}.Intersect(ranges.Between(0, st.Size))
	if want.Empty() {
		return nil, nil
	}
	return f.try(p[:want.Len], want, from, st.Size)
}

// endsAt reports whether the file really ends at or before off.
func (f *File) endsAt(off int64) bool {
	st, err := f.below.Stat()
	return err == nil && off >= f.ino.Size(st.Size)
}
