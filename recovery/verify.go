package recovery

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// verifyChunk is how much is read back at a time.
const verifyChunk = 128 << 10

// verify reads back p, which was just written at off. The error is the medium's,
// or errDiffers.
func (f *File) verify(p []byte, off int64) error {
	chunk, ok := f.engine.chunks.Get().(*[verifyChunk]byte)
	if !ok {
		chunk = new([verifyChunk]byte)
	}
	defer f.engine.chunks.Put(chunk)
	for len(p) > 0 {
		n, err := f.below.Pread(chunk[:min(len(p), verifyChunk)], off)
		switch {
		case errors.Is(err, unix.EBADF):
			return nil // open for writing only
		case err != nil:
			return err
		case n == 0 || !bytes.Equal(chunk[:n], p[:n]):
			return errDiffers
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// verifyShared is verify with the inode locked shared: what differs may be
// another's write, and has to be looked at with the inode locked. shared is
// whether the file was shared when it was written: then what differs may be the
// kernel's, though the share has ended since.
func (f *File) verifyShared(p []byte, off int64, shared bool) error {
	err := f.verify(p, off)
	if errors.Is(err, errDiffers) && (shared || f.ino.isShared() || !f.engine.Semantics.Recover) {
		return nil
	}
	return err
}

// readBack verifies a run that was written. again says that it has pages that
// turned out bad, so that they have to be mended.
func (w *mendingWrite) readBack(run ranges.Range, shared bool) (again bool, err error) {
	w.size = max(w.size, run.End())
	if err = w.file.verifyShared(w.slice(run), run.Off, shared); err == nil {
		return false, nil
	}
	if !mayBePoison(err) || w.file.appends() {
		return false, w.file.trouble(run, err)
	}
	bad, err := w.inspect(run.Widen(ranges.PageSize).Intersect(ranges.Between(0, w.size)))
	if err != nil || bad > 0 {
		return bad > 0, err
	}
	if err := w.file.verifyShared(w.slice(run), run.Off, shared); err != nil {
		if w.isBadSince(run, err) {
			return true, nil
		}
		w.file.emitFailure("read-back", run, err)
		return false, &RepairError{Step: "read-back", Page: run, Err: err}
	}
	return false, nil
}
