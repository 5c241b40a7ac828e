package fs

import (
	"errors"
	"fmt"
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
	key        key
	id         uint64 // the kernel's name for it
	kind       uint32 // S_IFMT bits
	generation uint32 // the backing's, if exported
	exported   bool   // its handle can be made of inode number and generation

	// Guarded by table.mu; fd stays as it is while the inode is acquired.
	keep       bool
	unnamed    bool   // the file may have no name: it is freed with its last descriptor
	fromHandle bool   // fd was opened by a handle: the backing kernel may know no name of the file
	pins       int32  // requests that use fd
	users      int32  // those, and open handles
	told       uint32 // when the kernel was told of it by name, by table.clock
	fd         int    // O_PATH, or -1
	lookups    uint64 // what the kernel will forget
	handle     *unix.FileHandle
	prev, next *inode

	rec     atomic.Pointer[recovery.Inode] // made on first use
	passed  atomic.Pointer[passage]        // made on first open, where there is passthrough
	cross   atomic.Pointer[crossing]       // made on first write
	writers atomic.Int32                   // open handles that write
	plain   atomic.Bool                    // neither setuid, setgid nor capabilities since the last look
	sight   sight                          // where others may change the file
	mu      sync.Mutex                     // guards making rec, setting plain, listing
	listing listing                        // of a directory
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
		return rec.View(func() error {
			err := statx(fd, st)
			st.Size = uint64(rec.Size(int64(st.Size)))
			return err
		})
	}
	return statx(fd, st)
}

// reachable is the error for err, with which opening or linking n failed.
// Landlock refuses (EACCES, EXDEV) a file of which the backing kernel has no name
// in its cache, as it can be when the descriptor came from a handle. With ESTALE
// the kernel looks the file up by name and tries once more (retry_estale, Linux
// 6.18), which gives the inode a descriptor with a name (see table.enter).
func (f *FS) reachable(n *inode, err error) error {
	refused := errors.Is(err, unix.EACCES) || errors.Is(err, unix.EXDEV)
	if refused && f.callers.privileged && f.table.nameless(n) {
		return fmt.Errorf("%w, after %w", unix.ESTALE, err)
	}
	return err
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

// fillAttr says what the kernel is told of attributes.
func (f *FS) fillAttr(out *fuse.Attr, st *unix.Statx_t) {
	*out = fuse.Attr{
		Ino:       f.number(keyOf(st)),
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

// number is the inode number that applications see: all files of the mount
// have one device number, so files of other devices than the root's (mounts
// below it that are crossed, subvolumes of btrfs) get numbers of their own, which
// stay as long as the device has its number.
func (f *FS) number(k key) uint64 {
	if k.dev == f.table.rootKey.dev {
		return k.ino
	}
	return counted | mix(mix(k.dev)+k.ino)
}

// mix spreads x over 64 bits (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
