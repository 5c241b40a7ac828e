package fs

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
)

// key tells files apart.
type key struct{ dev, ino uint64 }

func keyOf(st *unix.Statx_t) key {
	return key{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}
}

// inode is a file that the kernel knows.
type inode struct {
	key  key
	id   uint64 // the kernel's name for it
	kind uint32 // S_IFMT bits

	// Guarded by table.mu; fd stays as it is while the inode is acquired.
	fd         int // O_PATH, or -1
	keep       bool
	pins       int32  // requests that use fd
	users      int32  // those, and open handles
	lookups    uint64 // what the kernel will forget
	handle     *unix.FileHandle
	prev, next *inode

	rec   atomic.Pointer[recovery.Inode] // made on first use
	plain atomic.Bool                    // neither setuid, setgid nor capabilities since the last look

	mu   sync.Mutex // guards making rec, setting plain, and:
	seen version
}

// recovery is what the engine knows of the regular file n, which is acquired
// or held by way of fd.
func (n *inode) recovery(e *recovery.Engine, fd int) *recovery.Inode {
	if rec := n.rec.Load(); rec != nil {
		return rec
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.rec.Load()
	if rec == nil {
		rec = e.NewInode(fd)
		n.rec.Store(rec)
	}
	return rec
}

// stat asks for the attributes of n through fd. It never shows the size that
// a repair gives a file in passing.
func (n *inode) stat(fd int, st *unix.Statx_t) error {
	if rec := n.rec.Load(); rec != nil {
		return rec.View(func() error { return statx(fd, st) })
	}
	return statx(fd, st)
}

// version changes whenever the content of a file does.
type version struct {
	sec  int64
	nsec uint32
	size uint64
}

// unchanged reports whether the file is the same as when it was asked last,
// at the open before: only then the kernel may keep the pages it has. So who
// opens a file after it was changed in the backing directory sees the change;
// who has it open, after the attribute timeout (AUTO_INVAL_DATA).
func (n *inode) unchanged(st *unix.Statx_t) bool {
	now := version{st.Ctime.Sec, st.Ctime.Nsec, st.Size}
	n.mu.Lock()
	defer n.mu.Unlock()
	same := n.seen == now
	n.seen = now
	return same
}

// statx is the one question for attributes. fd may be O_PATH.
func statx(fd int, st *unix.Statx_t) error {
	return again(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
	})
}

// procPath is a path to the very file that fd is open on, symbolic links
// included, for calls that take no O_PATH descriptor.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func fillAttr(out *fuse.Attr, st *unix.Statx_t) {
	*out = fuse.Attr{
		Ino:       st.Ino,
		Size:      st.Size,
		Blocks:    st.Blocks,
		Atime:     uint64(st.Atime.Sec),
		Mtime:     uint64(st.Mtime.Sec),
		Ctime:     uint64(st.Ctime.Sec),
		Atimensec: st.Atime.Nsec,
		Mtimensec: st.Mtime.Nsec,
		Ctimensec: st.Ctime.Nsec,
		Mode:      uint32(st.Mode),
		Nlink:     st.Nlink,
		Owner:     fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev:      uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)),
		Blksize:   st.Blksize,
	}
}
