package media

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
	"weak"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Real is the medium of real files: the kernel's own answers.
type Real struct {
	root     int
	controls controls
	volume   *pmem.Volume              // nil: not on persistent memory
	looking  sync.Mutex                // held while the list is read: what is known is the newest look
	known    atomic.Pointer[pmem.List] // the kernel's list when last looked at; nil: never
	unwatch  func()                    // ends watching it; nil: nobody does
	watched  chan struct{}             // closed when that has ended

	alone      *alone   // nil: reads may go side by side
	mustClear  bool     // see MustClear
	privileged bool     // the daemon's own rights are more than its callers'
	rooms      sync.Map // device number → *room
}

var _ Medium = (*Real)(nil)

// Pread and Pwrite hand offsets to the kernel in one register: on a 32-bit
// machine this does not compile.
const _ = unsafe.Sizeof(uintptr(0)) - 8

// New is the medium of the real files of the filesystem that root lies on.
// root stays the caller's and must stay open as long as the medium is used.
func New(root int) *Real {
	m := &Real{root: root, privileged: isPrivileged()}
	var st unix.Statfs_t
	if unix.Fstatfs(root, &st) == nil && uint32(st.Type) == unix.FUSE_SUPER_MAGIC {
		m.alone = &alone{turns: map[uint64]weak.Pointer[turn]{}}
		m.controls.alone = m.alone
	}
	return m
}

// NewOnPmem is New for a filesystem on persistent memory, whose list of bad
// sectors it watches until Close. volume stays the caller's, as root.
func NewOnPmem(root int, volume *pmem.Volume) *Real {
	m := New(root)
	m.volume, m.watched, m.mustClear = volume, make(chan struct{}), isXFS(root)
	ctx, cancel := context.WithCancel(context.Background())
	m.unwatch = cancel
	m.watch(ctx)
	return m
}

// Close lets go of files of the filesystem that Control keeps open.
func (m *Real) Close() error {
	if m.unwatch != nil {
		m.unwatch()
		<-m.watched
	}
	return m.controls.close()
}

// Open wraps fd. Where files are read alone it takes to O_DIRECT.
func (m *Real) Open(fd int) File { return &realFile{medium: m, fd: fd, turn: m.alone.turnOf(fd)} }

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
	turn   *turn                // nil: reads need none
	room   atomic.Pointer[room] // of the file's filesystem, from the first write on
}

func (f *realFile) Fd() int { return f.fd }

// Pread makes the system call itself: each call in between costs 1 % of a read
// of 4 KiB, since the processor has forgotten on its way through the kernel
// where calls return to, and unix.Pread makes as many as the engine
// (BenchmarkPread in package recovery).
func (f *realFile) Pread(p []byte, off int64) (int, error) {
	if f.turn != nil {
		return f.turn.pread(f.fd, p, off)
	}
	n, _, errno := syscall.Syscall6(unix.SYS_PREAD64, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return pread(f.fd, p, off)
	}
	return 0, errno
}

// pread is pread(2), with n ≥ 0.
func pread(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, off)
		if err == nil {
			return n, nil
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
}

// Pwrite calls the kernel itself, as Pread.
func (f *realFile) Pwrite(p []byte, off int64, uid uint32) (int, error) {
	if uid != 0 && f.medium.privileged && !f.hasRoom() {
		return f.pwriteAs(p, off, uid)
	}
	n, _, errno := syscall.Syscall6(unix.SYS_PWRITE64, uintptr(f.fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off), 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR:
		return pwrite(f.fd, p, off)
	}
	return 0, errno
}

// pwrite is pwrite(2), with n ≥ 0.
func pwrite(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pwrite(fd, p, off)
		if err == nil {
			return n, nil
		}
		if err != unix.EINTR {
			return 0, err
		}
	}
}

func (f *realFile) pwriteAs(p []byte, off int64, uid uint32) (n int, err error) {
	err = As(uid, func() error {
		n, err = pwrite(f.fd, p, off)
		return err
	})
	return n, err
}

// Allocate is As in any case: one call may be for all that is free.
func (f *realFile) Allocate(mode uint32, off, length int64, uid uint32) error {
	if room := f.findRoom(); room != nil {
		defer room.askAgain()
	}
	return As(uid, func() error {
		for {
			err := unix.Fallocate(f.fd, mode, off, length)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
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
	if f.turn != nil { // what the kernel learns of a file while it is read, counts as above
		f.turn.mu.Lock()
		defer f.turn.mu.Unlock()
	}
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
