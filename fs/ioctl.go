package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The ioctls that are passed on. They ask and change nothing; all others
// would run with the daemon's rights (shutting down a filesystem, for one:
// TestIoctl). FS_IOC_GETVERSION is harmless below, but not here: it is
// declared with a long and called with an int, and FUSE copies what is
// declared over the stack of the caller (lsattr -v, Linux 6.18).
const (
	getFlags   = 0x80086601 // FS_IOC_GETFLAGS: lsattr
	getFsxattr = 0x801c581f // FS_IOC_FSGETXATTR: project ids
)

// Ioctl passes on what is on the list.
func (f *FS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, out []byte) fuse.Status {
	switch in.Cmd {
	case getFlags, getFsxattr:
	default:
		return status(unix.ENOTTY)
	}
	h, err := f.handles.get(in.Fh)
	if err != nil {
		return status(err)
	}
	var answer [32]byte // struct fsxattr, the largest, has 28
	err = again(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.fd), uintptr(in.Cmd), uintptr(unsafe.Pointer(&answer)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err == nil {
		copy(out, answer[:])
	}
	return status(err)
}
