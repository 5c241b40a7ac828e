package fs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mkdir makes a directory.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(in.NodeId, name, out, maker(&in.Caller, in.Umask, in.Mode|unix.S_IFDIR), in.Mode&07777, func(dir int, mode uint32) error {
		return unix.Mkdirat(dir, name, mode)
	})
}

// Mknod makes fifos, sockets, devices and, for mknod(2), files.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(in.NodeId, name, out, maker(&in.Caller, in.Umask, in.Mode), in.Mode, func(dir int, mode uint32) error {
		return unix.Mknodat(dir, name, mode, int(in.Rdev))
	})
}

// Symlink makes a symbolic link.
func (f *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(in.NodeId, name, out, maker(&in.Caller, 0, 0), 0, func(dir int, _ uint32) error {
		return unix.Symlinkat(target, dir, name)
	})
}

// make runs call, which makes name in a directory, as who, and tells the
// kernel of the new object.
func (f *FS) make(id uint64, name string, out *fuse.EntryOut, who identity, mode uint32, call func(dir int, mode uint32) error) fuse.Status {
	dir, err := f.change(id, name)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	if err := f.callers.making(who, dir.fd, mode, func(mode uint32) error { return call(dir.fd, mode) }); err != nil {
		return status(err)
	}
	return status(f.lookup(dir.fd, name, out))
}

// Link gives a file one more name.
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := f.change(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	n, err := f.table.acquire(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	defer f.table.release(n)
	// AT_SYMLINK_FOLLOW is for /proc: it ends at the file itself, which is
	// not followed if it is a symbolic link.
	err = again(func() error {
		return unix.Linkat(unix.AT_FDCWD, procPath(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return status(f.reachable(n, err))
	}
	return status(f.tell(n, out))
}

// Readlink is the target of a symbolic link.
func (f *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := f.table.acquire(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer f.table.release(n)
	target := make([]byte, unix.PathMax)
	length, err := unix.Readlinkat(n.fd, "", target)
	if err != nil {
		return nil, status(err)
	}
	return target[:length], fuse.OK
}

// Unlink removes a name of a file.
func (f *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in, name, 0)
}

// Rmdir removes an empty directory.
func (f *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(in, name, unix.AT_REMOVEDIR)
}

func (f *FS) remove(in *fuse.InHeader, name string, flags int) fuse.Status {
	dir, err := f.change(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	removed := removalOf(dir.fd, name)
	if err := f.prepareRemoval(removed, &in.Caller); err != nil {
		return status(err)
	}
	err = again(func() error { return unix.Unlinkat(dir.fd, name, flags) })
	if err == nil {
		f.table.orphan(removed)
	}
	return status(err)
}

// Rename moves or exchanges names. A whiteout (RENAME_WHITEOUT) is a new
// object, so it is the caller's.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	old, err := f.change(in.NodeId, from)
	if err != nil {
		return status(err)
	}
	defer f.table.release(old)
	dir, err := f.change(in.Newdir, to)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	rename := func() error { return unix.Renameat2(old.fd, from, dir.fd, to, uint(in.Flags)) }
	var replaced removal
	if in.Flags&(unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE) == 0 {
		replaced = removalOf(dir.fd, to)
	}
	if err := f.prepareRemoval(replaced, &in.Caller); err != nil {
		return status(err)
	}
	if in.Flags&unix.RENAME_WHITEOUT != 0 {
		err = f.callers.as(maker(&in.Caller, 0, 0), rename)
	} else {
		err = again(rename)
	}
	if in.Flags == 0 && errors.Is(err, unix.ENOSYS) {
		err = again(func() error { return unix.Renameat(old.fd, from, dir.fd, to) })
	}
	if err == nil {
		f.table.orphan(replaced) // if it is gone
	}
	return status(err)
}
