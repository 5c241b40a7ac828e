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
	switch name { // only for file handles
	case ".":
		return status(f.lookupSelf(in.NodeId, out))
	case "..":
		return status(f.lookupParent(in.NodeId, out))
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
// inode that the kernel knows is found, and a forgotten one where its number is
// enough to find it (see export). The kernel compares the generation.
func (f *FS) lookupSelf(id uint64, out *fuse.EntryOut) error {
	n, err := f.table.acquire(id)
	if err != nil {
		return f.lookupForgotten(id, out)
	}
	defer f.table.release(n)
	var st unix.Statx_t
	if err := n.stat(n.fd, &st); err != nil {
		return err
	}
	if st.Nlink == 0 { // nor open: then the kernel would not ask, only its FORGET is still to come
		return unix.ESTALE
	}
	return f.tell(n, out)
}

func (f *FS) lookupForgotten(id uint64, out *fuse.EntryOut) error {
	fd, err := f.table.find(id)
	if err != nil {
		return err
	}
	n, err := f.enter(fd, true, out)
	if err != nil {
		return err
	}
	f.table.release(n)
	if n.id != id { // another file had the number when the kernel asked
		f.table.forget(n.id, 1)
		return unix.ESTALE
	}
	return nil
}

// lookupParent answers for file handles of directories, which the kernel
// connects to the root.
func (f *FS) lookupParent(id uint64, out *fuse.EntryOut) error {
	n, err := f.table.acquire(id)
	if err != nil {
		return err
	}
	defer f.table.release(n)
	if n.kind != unix.S_IFDIR || id == fuse.FUSE_ROOT_ID {
		return unix.ESTALE
	}
	fd, err := parentOf(n.fd)
	if err != nil {
		return err
	}
	if !f.table.climbs(fd) {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return unix.ESTALE
	}
	return f.entry(fd, out)
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
	n, err := f.enter(fd, false, out)
	if err == nil {
		f.table.release(n)
	}
	return err
}

// enter is entry, and answers with the inode, acquired.
func (f *FS) enter(fd int, fromHandle bool, out *fuse.EntryOut) (*inode, error) {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return nil, err
	}
	n := f.table.enter(fd, keyOf(&st), uint32(st.Mode)&unix.S_IFMT, fromHandle)
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
	f.look(n, n.fd, st)
	out.NodeId = n.id
	out.Generation = f.generationOf(n)
	out.SetEntryTimeout(f.config.EntryTimeout)
	out.SetAttrTimeout(f.attrTimeout(n))
	f.fillAttr(&out.Attr, st)
}

// generationOf is what keeps a file handle from naming another file.
func (f *FS) generationOf(n *inode) uint64 {
	switch n.id {
	case fuse.FUSE_ROOT_ID:
		return 0 // which the kernel took for granted at mount
	case n.key.ino:
		return uint64(n.generation)
	}
	return f.generation
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
