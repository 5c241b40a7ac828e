package soak

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// world is a directory in which operations are done: one in the mount, and one
// on the bare filesystem beside it.
type world struct {
	root string
	open map[string]int // file descriptors by name
}

func newWorld(root string) (*world, error) {
	for _, dir := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, err
		}
	}
	return &world{root: root, open: map[string]int{}}, nil
}

func (w *world) path(name string) string { return filepath.Join(w.root, name) }

// result is what an operation gave: the errno is what programs see.
type result struct {
	n    int64
	data []byte // read
	err  error
}

// errFault is a SIGBUS in a mapping.
var errFault = errors.New("SIGBUS")

// perform does an operation.
func (w *world) perform(o op) result {
	switch o.Verb {
	case create:
		return w.onPath(o.Name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, nil)
	case reset:
		return w.onPath(o.Name, unix.O_RDWR|unix.O_TRUNC, nil)
	case rename, swap, link, unlink, reopen:
		return result{err: w.changeNames(o)}
	case directRead:
		return w.onPath(o.Name, unix.O_RDWR|unix.O_DIRECT, func(fd int) result { return readAt(fd, aligned(o.Range.Len), o.Range.Off) })
	case directWrite:
		return w.onPath(o.Name, unix.O_RDWR|unix.O_DIRECT, func(fd int) result {
			b := aligned(o.Range.Len)
			copy(b, o.data(o.Range))
			return writeAt(fd, b, o.Range.Off)
		})
	case appendTo:
		return w.onPath(o.Name, unix.O_WRONLY|unix.O_APPEND, func(fd int) result {
			n, err := unix.Write(fd, o.data(o.Range))
			return result{n: int64(n), err: err}
		})
	}
	fd, err := w.fd(o.Name)
	if err != nil {
		return result{err: err}
	}
	return w.onFd(o, fd)
}

func (w *world) onFd(o op, fd int) result {
	r := o.Range
	fallocate := func(mode uint32) result { return result{err: unix.Fallocate(fd, mode, r.Off, r.Len)} }
	switch o.Verb {
	case read:
		return readAt(fd, make([]byte, r.Len), r.Off)
	case write:
		return writeAt(fd, o.data(r), r.Off)
	case mapRead, store, store2:
		return mapped(o, fd)
	case truncate:
		return result{err: unix.Ftruncate(fd, r.Off)}
	case punch:
		return fallocate(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	case zero:
		return fallocate(unix.FALLOC_FL_ZERO_RANGE)
	case zeroKeep:
		return fallocate(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	case allocate:
		return fallocate(0)
	case reserve:
		return fallocate(unix.FALLOC_FL_KEEP_SIZE)
	case fsync:
		return result{err: unix.Fsync(fd)}
	case copyRange:
		return w.copy(o, fd)
	}
	return result{err: fmt.Errorf("no operation %q", o.Verb)}
}

// copy goes on until all is copied, or the source ends.
func (w *world) copy(o op, fd int) result {
	to, err := w.fd(o.To)
	if err != nil {
		return result{err: err}
	}
	from, at, done := o.Range.Off, o.OffTo, int64(0)
	for done < o.Range.Len {
		n, err := unix.CopyFileRange(fd, &from, to, &at, int(o.Range.Len-done), 0)
		if err != nil {
			return result{n: done, err: err}
		}
		if n == 0 {
			break
		}
		done += int64(n)
	}
	return result{n: done}
}

// mapped loads or stores through a shared mapping.
func mapped(o op, fd int) result {
	if o.Verb == mapRead {
		data := make([]byte, o.Range.Len)
		err := withMapping(fd, o.Range, func(m []byte) { copy(data, m) })
		return result{n: o.Range.Len, data: data, err: err}
	}
	err := withMapping(fd, o.Range, func(m []byte) {
		for _, piece := range o.stores() {
			copy(m[piece.Off-o.Range.Off:], o.data(piece))
		}
	})
	return result{n: o.Range.Len, err: err}
}

// storeBytes stores through a mapping, durably.
func storeBytes(fd int, r ranges.Range, data []byte) error {
	return withMapping(fd, r, func(m []byte) { copy(m, data) })
}

// withMapping hands over a mapping of r of a file, and syncs it. A SIGBUS is
// errFault.
func withMapping(fd int, r ranges.Range, use func(m []byte)) (err error) {
	pages := r.Widen(ranges.PageSize)
	m, err := unix.Mmap(fd, pages.Off, int(pages.Len), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() {
		if unmapErr := unix.Munmap(m); unmapErr != nil && err == nil {
			err = unmapErr
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errFault
		}
	}()
	at := r.Off - pages.Off
	use(m[at : at+r.Len : at+r.Len])
	return unix.Msync(m, unix.MS_SYNC)
}

// changeNames does what changes names, with the descriptors that belong to them.
func (w *world) changeNames(o op) error {
	from, to := w.path(o.Name), w.path(o.To)
	switch o.Verb {
	case reopen:
		w.close(o.Name)
		return nil
	case link:
		return unix.Link(from, to)
	case swap:
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
		if err == nil {
			w.close(o.Name)
			w.close(o.To)
		}
		return err
	case unlink:
		if _, err := w.fd(o.Name); err != nil {
			return err
		}
		err := unix.Unlink(from)
		if err == nil {
			w.move(o.Name, o.orphan())
		}
		return err
	}
	same := sameFile(from, to)
	displaced := false
	if _, err := os.Lstat(to); err == nil && !same {
		if _, err := w.fd(o.To); err != nil {
			return err
		}
		displaced = true
	}
	err := unix.Rename(from, to)
	if err != nil || same {
		return err
	}
	if displaced {
		w.move(o.To, o.orphan())
	}
	w.move(o.Name, o.To)
	return nil
}

func sameFile(a, b string) bool {
	x, errX := os.Lstat(a)
	y, errY := os.Lstat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// fd is the descriptor kept for a name.
func (w *world) fd(name string) (int, error) {
	if fd, ok := w.open[name]; ok {
		return fd, nil
	}
	fd, err := unix.Open(w.path(name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	w.open[name] = fd
	return fd, nil
}

func (w *world) move(name, to string) {
	if fd, ok := w.open[name]; ok {
		delete(w.open, name)
		w.open[to] = fd
	}
}

func (w *world) close(name string) {
	if fd, ok := w.open[name]; ok {
		delete(w.open, name)
		_ = unix.Close(fd) // what was written is written through; errors of a dead mount are seen elsewhere
	}
}

func (w *world) closeAll() {
	for name := range w.open {
		w.close(name)
	}
}

// onPath opens a file for one use.
func (w *world) onPath(name string, flags int, use func(fd int) result) result {
	fd, err := unix.Open(w.path(name), flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return result{err: err}
	}
	res := result{}
	if use != nil {
		res = use(fd)
	}
	if err := unix.Close(fd); err != nil && res.err == nil {
		res.err = err
	}
	return res
}

func readAt(fd int, b []byte, off int64) result {
	n, err := unix.Pread(fd, b, off)
	n = max(0, n)
	return result{n: int64(n), data: b[:n], err: err}
}

func writeAt(fd int, b []byte, off int64) result {
	n, err := unix.Pwrite(fd, b, off)
	return result{n: int64(max(0, n)), err: err}
}

// aligned is memory that O_DIRECT takes.
func aligned(n int64) []byte {
	b := make([]byte, n+ranges.PageSize)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (ranges.PageSize - 1)
	return b[skip : int64(skip)+n]
}
