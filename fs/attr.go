package fs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// GetAttr answers stat.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var st unix.Statx_t
	timeout, err := f.stat(in.NodeId, in.Fh(), in.Flags()&fuse.FUSE_GETATTR_FH != 0, &st)
	if err != nil {
		return status(err)
	}
	out.SetTimeout(timeout)
	f.fillAttr(&out.Attr, &st)
	return fuse.OK
}

// Statx answers statx where the kernel wants more than GetAttr has: the time
// of birth.
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var st unix.Statx_t
	timeout, err := f.stat(in.NodeId, in.Fh, in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0, &st)
	if err != nil {
		return status(err)
	}
	out.SetTimeout(timeout)
	st.Ino = f.number(keyOf(&st))
	out.FromStatx(&st)
	return fuse.OK
}

// stat asks for attributes, and says how long they may be kept.
func (f *FS) stat(id, fh uint64, byHandle bool, st *unix.Statx_t) (time.Duration, error) {
	n, fd, done, err := f.target(id, fh, byHandle)
	if err != nil {
		return 0, err
	}
	defer done()
	if err := n.stat(fd, st); err != nil {
		return 0, err
	}
	n.notice(st)
	f.look(n, fd, st)
	return f.attrTimeout(n), nil
}

// target is the inode that a request is about, and a descriptor of it, which
// holds until done: the handle's, if the kernel names one.
func (f *FS) target(id, fh uint64, byHandle bool) (n *inode, fd int, done func(), err error) {
	if byHandle {
		h, err := f.handles.get(fh)
		if err != nil {
			return nil, -1, nil, err
		}
		return h.n, h.fd, func() {}, nil
	}
	n, err = f.table.acquire(id)
	if err != nil {
		return nil, -1, nil, err
	}
	return n, n.fd, func() { f.table.release(n) }, nil
}

// SetAttr does truncate, chown, chmod and utimens, in the order in which one
// undoes nothing of another.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if err := f.writable(); err != nil {
		return status(err)
	}
	fh, byHandle := in.GetFh()
	n, fd, done, err := f.target(in.NodeId, fh, byHandle)
	if err != nil {
		return status(err)
	}
	defer done()
	if err := f.setAttr(n, fd, in); err != nil {
		return status(err)
	}
	var st unix.Statx_t
	if err := n.stat(fd, &st); err != nil {
		return status(err)
	}
	n.notice(&st)
	out.SetTimeout(f.attrTimeout(n))
	f.fillAttr(&out.Attr, &st)
	return fuse.OK
}

// attributes are what SetAttr can change.
const attributes = fuse.FATTR_SIZE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_MODE | fuse.FATTR_ATIME | fuse.FATTR_MTIME

func (f *FS) setAttr(n *inode, fd int, in *fuse.SetAttrIn) error {
	f.changing(n, fd)
	defer f.changed(n, fd)
	if in.Valid&(fuse.FATTR_KILL_SUIDGID|attributes) == 0 {
		// What is left of a wish to drop privileges: see privs.go.
		if err := f.mayDropPrivs(n, fd, &in.Caller); err != nil {
			return err
		}
		in.Valid |= fuse.FATTR_KILL_SUIDGID
		n.privileged()
	}
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := f.dropPrivs(n, fd, &in.Caller); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if err := f.truncate(n, fd, int64(size), in); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, _ := in.GetUID() // -1 if not wanted
		gid, _ := in.GetGID()
		err := again(func() error { return unix.Fchownat(fd, "", int(int32(uid)), int(int32(gid)), unix.AT_EMPTY_PATH) })
		if err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := again(func() error { return unix.Fchmodat(unix.AT_FDCWD, procPath(fd), mode, 0) }); err != nil {
			return err
		}
		n.privileged()
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		times := []unix.Timespec{
			timespec(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			timespec(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		}
		return again(func() error { return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH) })
	}
	return nil
}

func timespec(valid, wanted, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&wanted == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// truncate uses the handle that the kernel names if it can write; otherwise
// it opens the file for this.
func (f *FS) truncate(n *inode, fd int, size int64, in *fuse.SetAttrIn) error {
	who := caller(&in.Caller)
	defer f.dropStale(n)
	if fh, ok := in.GetFh(); ok {
		h, err := f.handles.get(fh)
		if err != nil {
			return err
		}
		if h.file != nil && h.writes {
			return h.file.Truncate(size, who)
		}
	}
	if n.kind != unix.S_IFREG {
		return unix.EINVAL
	}
	own, _, err := f.reopen(fd, unix.O_WRONLY)
	if err != nil {
		return f.reachable(n, err)
	}
	err = f.engine.Open(n.recovery(f.engine, own), own).Truncate(size, who)
	if e := unix.Close(own); err == nil {
		err = e
	}
	return err
}

// StatFs answers statfs with the backing filesystem's numbers.
func (f *FS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, err := f.table.acquire(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.table.release(n)
	f.table.awaitOrphans(false)
	var st syscall.Statfs_t
	if err := again(func() error { return syscall.Fstatfs(n.fd, &st) }); err != nil {
		return status(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}
