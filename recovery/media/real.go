package media

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Real is the medium of real files: the kernel's own answers.
type Real struct {
	root     int
	controls controls
}

var _ Medium = (*Real)(nil)

// New is the medium of the real files of the filesystem that root lies on.
// root stays the caller's and must stay open as long as the medium is used.
func New(root int) *Real { return &Real{root: root} }

// Close lets go of files of the filesystem that Control keeps open.
func (m *Real) Close() error { return m.controls.close() }

// Open wraps fd.
func (m *Real) Open(fd int) File { return &realFile{medium: m, fd: fd} }

// Source says that poison comes from the kernel.
func (m *Real) Source() string { return "kernel" }

// KernelCopies is true on ext4 and tmpfs, which have no reflinks and fail a copy
// over poison (lab facts); XFS and btrfs share blocks.
func (m *Real) KernelCopies() bool {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(m.root, &fs); err != nil {
		return false
	}
	return fs.Type == unix.EXT4_SUPER_MAGIC || fs.Type == unix.TMPFS_MAGIC
}

type realFile struct {
	medium *Real
	fd     int
}

func (f *realFile) Fd() int { return f.fd }

func (f *realFile) Pread(p []byte, off int64) (int, error) {
	return pread(f.fd, p, off)
}

// pread is pread(2), with n ≥ 0.
func pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

func (f *realFile) Pwrite(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pwrite(f.fd, p, off)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

func (f *realFile) Allocate(mode uint32, off, length int64) error {
	for {
		err := unix.Fallocate(f.fd, mode, off, length)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *realFile) Truncate(size int64) error {
	for {
		err := unix.Ftruncate(f.fd, size)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *realFile) Sync(full bool) error {
	if full {
		return unix.Fsync(f.fd)
	}
	return unix.Fdatasync(f.fd)
}

func (f *realFile) Stat() (Stat, error) {
	var st unix.Statx_t
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC,
		unix.STATX_SIZE|unix.STATX_MTIME|unix.STATX_CTIME|unix.STATX_INO, &st)
	if err != nil {
		return Stat{}, fmt.Errorf("statx: %w", err)
	}
	return Stat{
		Dev:   unix.Mkdev(st.Dev_major, st.Dev_minor),
		Ino:   st.Ino,
		Size:  int64(st.Size),
		Mtime: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec),
		Ctime: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec),
	}, nil
}

func (f *realFile) SetMtime(ns int64) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(ns)}
	return unix.UtimesNanoAt(f.fd, "", times, unix.AT_EMPTY_PATH)
}

// IsHole asks SEEK_DATA; a filesystem that does not know says "data".
func (f *realFile) IsHole(r ranges.Range) (bool, error) {
	data, err := unix.Seek(f.fd, r.Off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return true, nil // nothing but holes up to the end
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("lseek(SEEK_DATA): %w", err)
	}
	return data >= r.End(), nil
}

// Corroborate never knows: a filesystem's own word for a failure is the errno,
// and there is no list to compare it with.
func (f *realFile) Corroborate(ranges.Range) Verdict { return Unknown }
