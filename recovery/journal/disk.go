package journal

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is where journal files lie. The other implementation is the one of the
// tests, which loses power.
type disk interface {
	Open(path string, write bool) (file, error)
	Create(path string) (file, error) // empty, also if it was there
	Rename(from, to string) error     // durable when it returns nil; may be in force if not
	Link(path, second string) error   // another name, in place of what had it; durable with the next Rename
	Remove(path string) error
}

// file is a journal file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Allocate(off, n int64) error // extends the file, which ends at off; reads as zeros
	Datasync() error
}

// osDisk is the disk that the kernel knows.
type osDisk struct{}

func (osDisk) Open(path string, write bool) (file, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) Create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (osDisk) Link(path, second string) error {
	if err := os.Remove(second); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Link(path, second)
}

func (osDisk) Remove(path string) error { return os.Remove(path) }

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Allocate makes appends overwrite blocks that the file has already, so that
// they can't meet a full disk and fdatasync has no new size to write.
func (f osFile) Allocate(off, n int64) error {
	err := uninterrupted(func() error { return unix.Fallocate(int(f.Fd()), 0, off, n) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.WriteAt(make([]byte, n), off)
	}
	if err != nil { // give back what a full disk had
		return errors.Join(os.NewSyscallError("fallocate", err), f.Truncate(off))
	}
	return nil
}

func (f osFile) Datasync() error {
	return os.NewSyscallError("fdatasync", uninterrupted(func() error { return unix.Fdatasync(int(f.Fd())) }))
}

func uninterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
