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
		got, err := src.Read(buf[:min(n-done, copyChunk)], srcOff+done, who)
		if err == nil && got == 0 {
			break
		}
		var put int
		if err == nil {
			put, err = dst.Write(buf[:got], dstOff+done, false, who)
		}
		if err == nil {
			err = recordCopied(dst, dstOff+done, src, ranges.Range{Off: srcOff + done, Len: int64(put)})
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
	defer dst.ino.writes.Add(1) // before the lock is let go
	err = media.As(who.claims(), func() error {
		n, err := unix.CopyFileRange(src.below.Fd(), &srcOff, dst.below.Fd(), &dstOff, int(n), 0)
		done = int64(max(n, 0))
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EXDEV) {
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

// recordCopied records on dst, from off on, what was zero in r of src because
// it was lost.
func recordCopied(dst *File, off int64, src *File, r ranges.Range) error {
	from := src.ino.damage.Load()
	if from == nil || !src.engine.Semantics.Recover {
		return nil
	}
	zeros := append(from.lostWithin(r), from.reinitWithin(r)...)
	if len(zeros) == 0 {
		return nil
	}
	to, err := dst.know()
	if err != nil {
		return err
	}
	var change ledger.Change
	for _, z := range zeros {
		at := z.Shift(off - r.Off)
		change.Lost = append(change.Lost, ledger.Loss{File: to.id, Path: dst.path(), Range: at,
			Cause: "copied", Source: dst.engine.Medium.Source(), Granularity: at.Len})
		change.Moves = append(change.Moves, ledger.Move{File: to.id, Path: dst.path(), Range: at, To: ledger.Reinitialized})
	}
	if err := dst.engine.Ledger.Record(change); err != nil {
		return &RepairError{Step: "ledger", Page: r, Err: err}
	}
	to.apply(change)
	return nil
}
