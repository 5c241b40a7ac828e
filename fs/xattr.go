package fs

import (
	"bytes"
	"errors"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// lostAttr tells what a file has lost. It is answered, but neither stored
	// nor listed: backup tools would copy it.
	lostAttr = "user.mendfs.lost"
	// trusted attributes are for CAP_SYS_ADMIN. The kernel denies others
	// their content; not listing them is left to us, who know the uid only.
	trusted = "trusted."
	// system attributes are their filesystem's, and the kernel lets everybody
	// ask for them: with the daemon's rights they would be anybody's to change
	// (NFS, CIFS and NTFS keep access lists there; TestSystemXattr). Those in
	// posixACL the kernel asks for itself, after a look at who wants them.
	system   = "system."
	posixACL = "system.posix_acl_"
	// capability holds file capabilities.
	capability = "security.capability"

	listMax = 1 << 16 // XATTR_LIST_MAX
)

// GetXAttr answers with the size of the attribute, and its value if there is
// room.
func (f *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if isForeign(name) {
		return 0, status(unix.EOPNOTSUPP)
	}
	n, err := f.table.acquire(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer f.table.release(n)
	if name == lostAttr {
		return f.getLost(n, dest)
	}
	var size int
	err = again(func() (err error) {
		size, err = unix.Getxattr(procPath(n.fd), name, dest)
		return err
	})
	return uint32(max(size, 0)), status(err)
}

func (f *FS) getLost(n *inode, dest []byte) (uint32, fuse.Status) {
	if n.kind != unix.S_IFREG {
		return 0, fuse.ENODATA
	}
	value, ok := n.recovery(f.engine, n.fd).LostXattr()
	if !ok {
		return 0, fuse.ENODATA
	}
	return give(value, dest)
}

// isForeign reports whether nobody has looked at the caller's right to name.
func isForeign(name string) bool {
	return strings.HasPrefix(name, system) && !strings.HasPrefix(name, posixACL)
}

// give is the reply for a value: its size, and ERANGE if it does not fit.
func give(value, dest []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr lists the names that the caller may see.
func (f *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := f.table.acquire(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer f.table.release(n)
	all, err := listXattr(procPath(n.fd))
	if err != nil {
		return 0, status(err)
	}
	var names []byte
	for name := range bytes.SplitAfterSeq(all, []byte{0}) {
		s := strings.TrimSuffix(string(name), "\x00")
		if s == lostAttr || in.Uid != 0 && strings.HasPrefix(s, trusted) {
			continue
		}
		names = append(names, name...)
	}
	return give(names, dest)
}

func listXattr(path string) ([]byte, error) {
	for buf := make([]byte, 1024); ; buf = make([]byte, 8*len(buf)) {
		size, err := unix.Listxattr(path, buf)
		if err == nil {
			return buf[:size], nil
		}
		if len(buf) > listMax || !errors.Is(err, unix.ERANGE) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

// SetXAttr stores an attribute.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	return f.changeXattr(in.NodeId, name, func(n *inode) error {
		err := unix.Setxattr(procPath(n.fd), name, data, int(in.Flags))
		if err == nil && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
			return dropSetgid(n.fd)
		}
		return err
	})
}

// dropSetgid is due when somebody outside of the file's group sets an ACL.
func dropSetgid(fd int) error {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil || st.Mode&unix.S_ISGID == 0 {
		return err
	}
	return dropBits(fd, uint32(st.Mode), unix.S_ISGID)
}

// RemoveXAttr removes an attribute.
func (f *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.changeXattr(in.NodeId, name, func(n *inode) error {
		return unix.Removexattr(procPath(n.fd), name)
	})
}

func (f *FS) changeXattr(id uint64, name string, call func(*inode) error) fuse.Status {
	if err := f.writable(); err != nil {
		return status(err)
	}
	switch {
	case name == lostAttr:
		return fuse.EPERM
	case isForeign(name):
		return status(unix.EOPNOTSUPP)
	}
	n, err := f.table.acquire(id)
	if err != nil {
		return status(err)
	}
	defer f.table.release(n)
	if err := again(func() error { return call(n) }); err != nil {
		return status(err)
	}
	if name == capability {
		n.privileged()
	}
	return fuse.OK
}
