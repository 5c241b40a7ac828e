package fs

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// Registering: how the kernel gets to know a backing file.
//
// The kernel keeps the credentials of the thread that registers, and does all
// I/O of these opens with them. So that thread is the opener, as far as the
// backing filesystem looks: setuid bits are cleared, quotas and reserved blocks
// count. Root shares no rights of its own with those who open the file after
// it: for root the file's owner stands, or nobody if that is root and others may
// write the file. Whoever it is has no CAP_FSETID: a write by root clears setuid
// bits, too, as no other open may be allowed to leave them (docs/limits.md).

// register makes the backing file of h known to the kernel.
func (f *FS) register(p *passage, h *handle, c *fuse.Caller) error {
	who := identity{uid: c.Uid, gid: c.Gid}
	if who.uid == 0 {
		var st unix.Statx_t
		if err := statx(h.fd, &st); err != nil {
			return err
		}
		who = identity{uid: st.Uid, gid: st.Gid}
		if who.uid == 0 && st.Mode&0o022 != 0 {
			who.uid = media.Nobody // no blocks are reserved for those who may write root's file
		}
	}
	// Read-only: one that is open for writing can't be executed.
	fd, err := f.openAs(h.fd, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p.backing, err = f.registerAs(who, fd)
	return err
}

func (f *FS) registerAs(who identity, fd int) (id int32, err error) {
	err = f.callers.as(who, func() error {
		return registering(func() error {
			var errno unix.Errno
			id, errno = f.server.Load().RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
			if errno != 0 {
				return errno
			}
			return nil
		})
	})
	return id, err
}

// registering runs call, in a thread that is locked, with the right to register and
// without rights that the I/O to come must not have.
func registering(call func() error) error {
	before, err := getCaps()
	if err != nil {
		return err
	}
	caps := before
	caps.effective |= bits(unix.CAP_SYS_ADMIN) & caps.permitted
	caps.effective &^= bits(unix.CAP_FSETID, unix.CAP_SYS_RESOURCE)
	if err := caps.set(); err != nil {
		return err
	}
	return errors.Join(call(), before.set())
}

// ErrNoPassthrough says that the kernel has no FUSE passthrough.
var ErrNoPassthrough = errors.New("this kernel has no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)")

// ErrUnprivileged says that the daemon may not register backing files for others.
var ErrUnprivileged = errors.New("passthrough is for root, with CAP_SYS_ADMIN")

// CheckPassthrough finds out, by trying, whether the kernel can serve files of
// the backing directory by itself. Call it when the server has begun.
func (f *FS) CheckPassthrough() error {
	if f.server.Load().KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return ErrNoPassthrough
	}
	root, err := f.table.acquire(fuse.FUSE_ROOT_ID)
	if err != nil {
		return err
	}
	defer f.table.release(root)
	fd, err := f.anyFile(root)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	id, err := f.registerAs(identity{}, fd)
	if err != nil {
		return fmt.Errorf("registering a backing file: %w", err)
	}
	if errno := f.server.Load().UnregisterBackingFd(id); errno != 0 {
		return fmt.Errorf("giving a backing file back: %w", errno)
	}
	return nil
}

// anyFile opens a regular file on the filesystem of root: one without a name, or
// else the first to be found; -1 if there is none.
func (f *FS) anyFile(root *inode) (int, error) {
	if fd, err := unix.Open(procPath(root.fd), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
		return fd, nil
	}
	below, err := os.OpenRoot(procPath(root.fd))
	if err != nil {
		return -1, err
	}
	defer below.Close()
	fd := -1
	err = iofs.WalkDir(below.FS(), ".", func(path string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // another will do
		}
		file, err := below.Open(path)
		if err != nil {
			return nil
		}
		defer file.Close()
		if fd, err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		return iofs.SkipAll
	})
	return fd, err
}
