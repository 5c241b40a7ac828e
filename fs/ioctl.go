package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The ioctls that are passed on: all others would run with the daemon's rights
// (shutting down a filesystem, for one: TestIoctl), and are ENOTTY for
// everybody. FS_IOC_GETVERSION is harmless below, but not here: it is declared
// with a long and called with an int, and FUSE copies what is declared over the
// stack of the caller (lsattr -v, Linux 6.18).
const (
	getFlags   = 0x80086601 // FS_IOC_GETFLAGS: lsattr
	setFlags   = 0x40086602 // FS_IOC_SETFLAGS: chattr
	getFsxattr = 0x801c581f // FS_IOC_FSGETXATTR: project ids
	setFsxattr = 0x401c5820 // FS_IOC_FSSETXATTR
)

const (
	flagsSize   = 4  // the kernel's FUSE sends an int; an application's ioctl, passed on as it is, a long
	fsxattrSize = 28 // struct fsxattr
)

// Ioctl passes on what is on the list.
func (f *FS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, data []byte, _ *fuse.IoctlOut, out []byte) fuse.Status {
	h, err := f.handles.get(in.Fh)
	if err != nil {
		return status(err)
	}
	var arg [32]byte
	switch in.Cmd {
	case getFlags, getFsxattr:
		if err := ioctl(h.fd, in.Cmd, &arg); err != nil {
			return status(err)
		}
		copy(out, arg[:])
		return fuse.OK
	case setFlags, setFsxattr:
		return status(f.setFileattr(in, h, data, &arg))
	}
	return status(unix.ENOTTY)
}

// setFileattr changes flags or project as the caller, so that the backing
// kernel asks what it would ask him: the owner may, append-only and immutable are
// for CAP_LINUX_IMMUTABLE, quotas count. The kernel has asked the same before
// (vfs_fileattr_set, Linux 6.18), but not where an ioctl reaches us that it
// did not take for its own: then the answer is ENOTTY, and the owner is
// looked at here, since a daemon without privileges can't act as others.
func (f *FS) setFileattr(in *fuse.IoctlIn, h *handle, data []byte, arg *[32]byte) error {
	if err := f.writable(); err != nil {
		return err
	}
	size := flagsSize
	if in.Cmd == setFsxattr {
		size = fsxattrSize
	}
	if len(data) != size {
		return unix.ENOTTY
	}
	copy(arg[:], data)
	var st unix.Statx_t
	if err := statx(h.fd, &st); err != nil {
		return err
	}
	if in.Uid != 0 && in.Uid != st.Uid {
		return unix.EPERM
	}
	err := f.callers.as(maker(&in.Caller, 0, 0), func() error { return ioctl(h.fd, in.Cmd, arg) })
	if err == nil {
		f.attrsChanged(in.NodeId)
	}
	return err
}

// attrsChanged makes the kernel ask for attributes anew: it takes the change of
// flags, which moves ctime, for none (Linux 6.18; TestChattr). Unlike
// Invalidate it touches no pages and waits for nothing.
func (f *FS) attrsChanged(id uint64) {
	if server := f.server.Load(); server != nil {
		_ = server.InodeNotify(id, -1, 0) // at worst ctime is late by AttrTimeout
	}
}

func ioctl(fd int, cmd uint32, arg *[32]byte) error {
	return again(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(arg)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}
