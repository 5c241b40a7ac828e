package fs

import (
	"errors"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a directory. A name that is not there is an answer
// too, which the kernel keeps for EntryTimeout.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == "." {
		return status(f.lookupSelf(in.NodeId, out))
	}
	dir, err := f.dir(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	err = f.lookup(dir.fd, name, out)
	if errors.Is(err, unix.ENOENT) && f.config.EntryTimeout > 0 {
		out.SetEntryTimeout(f.config.EntryTimeout)
		return fuse.OK
	}
	return status(err)
}

// lookupSelf answers for file handles (open_by_handle_at on the mount): an
// inode that the kernel has not forgotten is found, others are stale.
func (f *FS) lookupSelf(id uint64, out *fuse.EntryOut) error {
	n, err := f.table.acquire(id)
	if err != nil {
		return err
	}
	defer f.table.release(n)
	return f.tell(n, out)
}

// Forget takes back lookups.
func (f *FS) Forget(id, count uint64) { f.table.forget(id, count) }

// lookup fills out with what name is in the directory open at dir. After a
// nil error the kernel knows the inode once more.
func (f *FS) lookup(dir int, name string, out *fuse.EntryOut) error {
	var fd int
	err := again(func() (err error) {
		fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return err
	}
	return f.entry(fd, out)
}

// entry fills out with the file at fd, an O_PATH descriptor that it takes
// over. After a nil error the kernel knows the inode once more.
func (f *FS) entry(fd int, out *fuse.EntryOut) error {
	n, err := f.enter(fd, out)
	if err == nil {
		f.table.release(n)
	}
	return err
}

// enter is entry, and answers with the inode, acquired.
func (f *FS) enter(fd int, out *fuse.EntryOut) (*inode, error) {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return nil, err
	}
	n := f.table.enter(fd, keyOf(&st), uint32(st.Mode)&unix.S_IFMT)
	if n.rec.Load() != nil {
		// A repair may be under way: ask again, in its pauses.
		if err := n.stat(n.fd, &st); err != nil {
			f.table.release(n)
			f.table.forget(n.id, 1)
			return nil, err
		}
	}
	f.fillEntry(n, &st, out)
	return n, nil
}

// tell fills out with n, which is acquired. After a nil error the kernel
// knows it once more.
func (f *FS) tell(n *inode, out *fuse.EntryOut) error {
	var st unix.Statx_t
	if err := n.stat(n.fd, &st); err != nil {
		return err
	}
	f.table.lookedUp(n)
	f.fillEntry(n, &st, out)
	return nil
}

func (f *FS) fillEntry(n *inode, st *unix.Statx_t, out *fuse.EntryOut) {
	n.notice(st)
	out.NodeId = n.id
	out.Generation = f.generation
	out.SetEntryTimeout(f.config.EntryTimeout)
	out.SetAttrTimeout(f.config.AttrTimeout)
	fillAttr(&out.Attr, st)
}

// dir is the acquired directory id, in which name is a plain name.
func (f *FS) dir(id uint64, name string) (*inode, error) {
	// The kernel sends no others; this is what "never leaves the root" rests on.
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return nil, unix.EINVAL
	}
	return f.table.acquire(id)
}

// change is dir for operations that change the directory.
func (f *FS) change(id uint64, name string) (*inode, error) {
	if err := f.writable(); err != nil {
		return nil, err
	}
	return f.dir(id, name)
}

// writable holds for a mount that was made read-only even if somebody
// remounts it.
func (f *FS) writable() error {
	if f.config.ReadOnly {
		return unix.EROFS
	}
	return nil
}
