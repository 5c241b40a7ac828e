package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// Trouble of the backing filesystem that the engine does not see, since no data of a
// file was asked for: programs get its errno, and somebody is told once.

// readsNames reports whether a request can't be refused for the data of a file: LOOKUP,
// GETATTR, READLINK, OPENDIR, READDIR, READDIRPLUS, STATX, by their numbers in linux/fuse.h.
func readsNames(opcode uint32) bool {
	switch opcode {
	case 1, 3, 5, 27, 28, 44, 52:
		return true
	}
	return false
}

// lookInto looks into the answer to a request that failed.
func (f *FS) lookInto(in *fuse.InHeader, st fuse.Status) {
	switch errno := unix.Errno(st); errno {
	case unix.EROFS:
		f.sayReadOnly()
	case unix.EIO, unix.EUCLEAN, unix.EBADMSG: // the latter are EFSCORRUPTED and EFSBADCRC
		const read = 15 // the one that fails for each page
		if !f.engine.CheckDown(in.Opcode == read) && readsNames(in.Opcode) {
			f.tellUnreadable(in.NodeId, errno)
		}
	}
}

// tellUnreadable tells of a file, or of a directory something in which, can't be had from
// a filesystem that goes on.
func (f *FS) tellUnreadable(id uint64, errno unix.Errno) {
	n, err := f.table.acquire(id)
	if err != nil {
		return // forgotten just now: nobody asks for it any more
	}
	defer f.table.release(n)
	f.engine.MetadataError(fileid.Path(f.engine.Root, n.fd), n.key.dev, n.key.ino, errno)
}

// BackingReadOnly reports whether the backing filesystem can't be written, since a program
// was refused for that. As long as none was, the filesystem is not asked: it may hang.
func (f *FS) BackingReadOnly() bool {
	if !f.saidReadOnly.Load() {
		return false
	}
	now := f.engine.IsReadOnlyBelow()
	f.saidReadOnly.Store(now)
	return now
}

// sayReadOnly says why a program was refused, where it is the backing filesystem that has
// become read-only, once.
func (f *FS) sayReadOnly() {
	if !f.config.ReadOnly && f.config.Warn != nil && f.engine.IsReadOnlyBelow() && !f.saidReadOnly.Swap(true) {
		f.config.Warn("the backing filesystem is read-only now: writes get EROFS, and poison is not repaired; see dmesg for why, then make it writable (mount -o remount,rw)")
	}
}
