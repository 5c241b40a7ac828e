package fs

import (
	"maps"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Files without names.
//
// unlink(2) returns before the kernel's FORGET comes, and close(2) before its RELEASE.
// Until then our descriptors keep the blocks of a file that has lost its last
// name. On any filesystem a program may remove files and find their room at
// once; so who gets no room waits until such files are gone and tries again,
// and statfs waits for them, too. They can't be let go at unlink: an open that
// has found the file before reaches us after it.

// How long room is waited for: files that nobody has open are gone as soon as the
// FORGET is here and the blocks are free; those that are open may stay so.
const (
	orphanWait     = 200 * time.Millisecond
	openOrphanWait = 10 * time.Millisecond
)

// orphans are the inodes without names that a table has descriptors of. The
// table's mutex guards it.
type orphans struct {
	inodes  map[*inode]struct{}
	left    int // removed by the critical section that is on
	closing int // removed, and the descriptor not closed yet
}

func (o *orphans) remove(n *inode) {
	if _, was := o.inodes[n]; was {
		delete(o.inodes, n)
		o.left++
		o.closing++
	}
}

// pending reports whether files are about to go, those that are open included if
// that is wanted.
func (o *orphans) pending(open bool) bool {
	if o.closing > 0 || open && len(o.inodes) > 0 {
		return true
	}
	for n := range o.inodes {
		if n.users == 0 {
			return true
		}
	}
	return false
}

// giveUp waits no more for the files that nobody has open and that do not go: somebody
// may hold them by O_PATH.
func (o *orphans) giveUp() {
	maps.DeleteFunc(o.inodes, func(n *inode, _ struct{}) bool { return n.users == 0 })
}

// orphan notes that a file has lost a name, and that its room is waited for if it was
// the last one. Another name may have been removed at the same time.
func (t *table) orphan(name removal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known(name.key)
	if n == nil || n.id == fuse.FUSE_ROOT_ID {
		return
	}
	n.unnamed = true
	if n.fd < 0 || !name.last {
		return
	}
	if t.orphans.inodes == nil {
		t.orphans.inodes = map[*inode]struct{}{}
	}
	t.orphans.inodes[n] = struct{}{}
}

// neverNamed notes that the file that the kernel calls id was made without a name.
func (t *table) neverNamed(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byID[id]; n != nil {
		n.unnamed = true
	}
}

// awaitOrphans waits a moment for files without names to go, those that are open
// included if that is wanted. It reports whether there were any.
func (t *table) awaitOrphans(open bool) bool {
	start := time.Now()
	for any := false; ; any = true {
		waited := time.Since(start)
		t.mu.Lock()
		pending := t.orphans.pending(open && waited < openOrphanWait)
		if pending && waited > orphanWait {
			t.orphans.giveUp()
			pending = false
		}
		t.mu.Unlock()
		if !pending {
			return any
		}
		time.Sleep(time.Millisecond)
	}
}

// withRoom runs handler, and once more if there was no room and files that take
// some have gone meanwhile. A handler that has failed has changed nothing.
func (f *FS) withRoom(handler func() fuse.Status) fuse.Status {
	st := handler()
	if (st == fuse.Status(unix.ENOSPC) || st == fuse.Status(unix.EDQUOT)) && f.table.awaitOrphans(true) {
		st = handler()
	}
	return st
}

// removal is a name that is about to be removed; the zero removal is none, or a
// directory's.
type removal struct {
	key   key
	last  bool // the file has no other
	empty bool
}

func removalOf(dir int, name string) removal {
	var st unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_NLINK|unix.STATX_SIZE, &st)
	if err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return removal{}
	}
	return removal{key: keyOf(&st), last: st.Nlink == 1, empty: st.Size == 0}
}
