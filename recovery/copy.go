package recovery

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// copyChunk bounds the memory of a copy through us.
const copyChunk = 1 << 20

// Copy copies n bytes from src to dst, as copy_file_range(2); the count is
// short at the end of src. It goes to the kernel only where that can't share
// blocks, since a reflink would clone the poison and a shared bad page can't be
// cured through either file, and where nothing is known of src. Zeros that
// stand for lost bytes are recorded on dst.
func Copy(dst *File, dstOff int64, src *File, srcOff, n int64, who Caller) (int64, error) {
	if done, err := copyInKernel(dst, dstOff, src, srcOff, n, who); err == nil {
		return done, nil
	} else if !errors.Is(err, errCopyHere) && !mayBePoison(err) {
		return 0, err
	}
	buf := make([]byte, min(n, copyChunk))
	var done int64
	for done < n {
		got, zeros, err := src.readKnowing(buf[:min(n-done, copyChunk)], srcOff+done, who)
		if err == nil && got == 0 {
			break
		}
		var put int
		if err == nil {
			put, err = dst.writeCopied(buf[:got], dstOff+done, zeros, who)
		}
		if err == nil {
			done += int64(put)
		}
		if err != nil && done == 0 {
			return 0, err
		}
		if err != nil || put < got {
			break
		}
	}
	return done, nil
}

// errCopyHere says that the kernel must not copy.
var errCopyHere = errors.New("copy through the engine")

func copyInKernel(dst *File, dstOff int64, src *File, srcOff, n int64, who Caller) (done int64, err error) {
	if !src.engine.Medium.KernelCopies() || dst.engine.VerifyWrites {
		return 0, errCopyHere
	}
	defer lockBoth(dst.ino, src.ino)()
	if dst.ino.damage.Load() != nil || src.ino.damage.Load() != nil {
		return 0, errCopyHere
	}
	defer dst.ino.changed(ranges.Range{Off: dstOff, Len: n})
	err = media.As(who.claims(), func() error {
		n, err := unix.CopyFileRange(src.below.Fd(), &srcOff, dst.below.Fd(), &dstOff, int(n), 0)
		done = int64(max(n, 0))
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EXDEV) ||
		errors.Is(err, unix.EAGAIN) { // what copy_splice_read makes of EFAULT, for latent poison in front (Linux 6.18, fs/splice.c)
		return 0, errCopyHere
	}
	return done, err
}

// lockBoth locks two inodes shared, always in the same order, and returns what
// unlocks them.
func lockBoth(a, b *Inode) (unlock func()) {
	if a == b {
		a.mu.RLock()
		return a.mu.RUnlock
	}
	if a.seq > b.seq {
		a, b = b, a
	}
	a.mu.RLock()
	b.mu.RLock()
	return func() {
		b.mu.RUnlock()
		a.mu.RUnlock()
	}
}

// readKnowing is Read, and the bytes of p that are zero because they were lost,
// as ranges of p. What is known can't change between the one and the other.
func (f *File) readKnowing(p []byte, off int64, who Caller) (n int, zeros []ranges.Range, err error) {
	want := ranges.Range{Off: off, Len: int64(len(p))}
	if !f.hasZeros(want) {
		writes := f.ino.writes.Load()
		n, err = f.Read(p, off, who)
		if err != nil || f.ino.damage.Load() == nil || f.ino.writes.Load() == writes && !f.hasZeros(want) {
			return n, nil, err
		}
	}
	f.tryFinishOpen(want)
	f.ino.lock()
	defer f.ino.unlock()
	r, err := f.tryWithin(p, off, start{writes: f.ino.writes.Load()})
	if r == nil {
		return 0, nil, err
	}
	if _, err := r.settle(who); err != nil {
		return 0, nil, err
	}
	for _, z := range append(r.damage.lostWithin(r.want), r.damage.reinitWithin(r.want)...) {
		zeros = append(zeros, z.Shift(-off))
	}
	return len(r.buf), zeros, nil
}

// hasZeros reports whether bytes of r are known to be zero because they were lost.
func (f *File) hasZeros(r ranges.Range) bool {
	d := f.ino.damage.Load()
	return d != nil && f.engine.Semantics.Recover && len(d.lostWithin(r))+len(d.reinitWithin(r)) > 0
}

// writeCopied is Write, and records the zeros, ranges of p, as copies of lost
// bytes before anybody else can write there. Nobody could tell them from data
// after a crash, so the record is durable before they are written; if they can't be,
// a record too many is left.
func (f *File) writeCopied(p []byte, off int64, zeros []ranges.Range, who Caller) (int, error) {
	if len(zeros) == 0 {
		return f.Write(p, off, false, who)
	}
	f.ino.lock()
	defer f.ino.unlock()
	at := ranges.Range{Off: off, Len: int64(len(p))}
	d, err := f.know()
	if err != nil {
		return 0, err
	}
	st, err := f.stat()
	if err != nil {
		return 0, err
	}
	look := &mendingWrite{file: f, damage: d, at: at, size: st.Size, who: who}
	if err := look.lookFirst(); err != nil { // so that what is lost there is bad, and repaired
		return 0, err
	}
	if err := f.engine.Ledger.Commit(f.copied(d, at, zeros)); err != nil {
		return 0, &RepairError{Step: "ledger", Page: at, Err: err}
	}
	d.recorded()
	f.engine.noteCopies(len(zeros))
	d.setCopied(at, zeros) // the write does not end the rows of these
	n, err := f.writeLocked(p, at, false, false, who)
	d.setCopied(at, nil)
	if n == 0 {
		return 0, err
	}
	return n, nil
}

// noteCopies counts rows of copied zeros, which any writer can make, and remove
// the files with them. Before the rows of files that are gone can be most of
// all, they are swept.
func (e *Engine) noteCopies(rows int) {
	const few = 1 << 14 // rows, for which nobody is asked
	if e.copies.Add(int64(rows)) < max(few, e.Ledger.Count()/2) {
		return
	}
	e.sweeps.begin(func() {
		e.copies.Store(0)
		if err := e.Sweep(); err != nil {
			e.tellFailure("ledger", err)
		}
		e.damagedInodes() // lets go of those that nobody uses any more
	})
}

// copied is the record of zeros, ranges counted from the start of r, in r. What is
// lost there already stays so until it is repaired, and bytes that are zero since a
// repair keep their row.
func (f *File) copied(d *damage, r ranges.Range, zeros []ranges.Range) (c ledger.Change) {
	path := f.path()
	for _, z := range zeros {
		at := z.Shift(r.Off).Intersect(r)
		c.Lost = append(c.Lost, ledger.Loss{File: d.id, Path: path, Range: at,
			Cause: ledger.CauseCopied, Source: f.engine.Medium.Source(), Granularity: 1})
		for _, fresh := range d.notLost(at) {
			c.Moves = append(c.Moves, ledger.Move{File: d.id, Path: path, Range: fresh, To: ledger.Reinitialized})
		}
	}
	return c
}
