package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A change to a file by somebody without CAP_FSETID takes the file's setuid
// and setgid bits and its capabilities away. The backing kernel does that for
// a daemon without privileges; a privileged daemon's changes it takes for
// root's own. So that one does it, whenever the kernel says that it is due
// (HANDLE_KILLPRIV_V2): by a flag of WRITE and SETATTR, or before FALLOCATE
// and COPY_FILE_RANGE, and for chown(-1, -1), by a SETATTR that changes nothing
// (Linux 6.18; TestSameAsBacking).

// mayDropPrivs refuses chown(-1, -1) where it would take a setuid or setgid bit
// from somebody else's file: the kernel's FUSE does not ask (Linux 6.18;
// TestSameAsBacking). Its request looks like those before FALLOCATE and
// COPY_FILE_RANGE, but who makes those has the file open for writing.
func (f *FS) mayDropPrivs(n *inode, fd int, c *fuse.Caller) error {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return err
	}
	setgid := st.Mode&unix.S_ISGID != 0 && (st.Mode&unix.S_IXGRP != 0 || !inGroup(c, st.Gid))
	privileged := n.kind != unix.S_IFDIR && (st.Mode&unix.S_ISUID != 0 || setgid)
	if privileged && c.Uid != 0 && c.Uid != st.Uid && n.writers.Load() == 0 {
		return unix.EPERM
	}
	return nil
}

// dropPrivs takes setuid, setgid and capabilities from n, open at fd, before
// a change that the caller c makes. It costs nothing if none have been seen
// since it was done last.
func (f *FS) dropPrivs(n *inode, fd int, c *fuse.Caller) error {
	if !f.callers.privileged || n.plain.Load() {
		return nil
	}
	n.mu.Lock() // so that a chmod at the same time is not overlooked
	defer n.mu.Unlock()
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return err
	}
	// A chown that changes nothing makes the kernel take away all but one: the
	// setgid bit without group execution of a file of a group that the
	// caller is not in.
	err := again(func() error { return unix.Fchownat(fd, "", -1, -1, unix.AT_EMPTY_PATH) })
	if err != nil {
		return err
	}
	mode := uint32(st.Mode) & 07777
	if n.kind != unix.S_IFDIR && mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID {
		if inGroup(c, st.Gid) {
			return nil // the next caller may not be
		}
		if err := dropBits(fd, mode, unix.S_ISUID|unix.S_ISGID); err != nil {
			return err
		}
	}
	n.plain.Store(true)
	return nil
}

func dropBits(fd int, mode, drop uint32) error {
	return again(func() error { return unix.Fchmodat(unix.AT_FDCWD, procPath(fd), mode&07777&^drop, 0) })
}

// privileged says that n may have got privileges.
func (n *inode) privileged() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plain.Store(false)
}

// notice looks out for privileges that n got in the backing directory.
func (n *inode) notice(st *unix.Statx_t) {
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 && n.plain.Load() {
		n.privileged()
	}
}
