package fs

import (
	"errors"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// counted is the bit of node ids that are a number of ours; the others are
// inode numbers of the backing.
const counted = 1 << 63

// table holds the inodes that the kernel knows.
//
// An inode stays as long as the kernel remembers it (lookups), or as
// something of ours uses it (users). All of that changes under one mutex, so
// a FORGET and a LOOKUP that race come one after the other: either the lookup
// finds the inode and it stays, or it is gone and the lookup makes a new one.
//
// The node id of a file is its inode number where file handles of the mount
// can last (see export); its generation goes with it. It is a number with the
// top bit set, counted and never used twice, elsewhere, on other devices than
// the root's, and while the kernel knows a removed file by that inode number. The
// root is always 1.
type table struct {
	mount   int     // for open_by_handle_at; -1 if handles can't be used
	mountID int     // the kernel's number for it
	export  *export // how handles are made; nil if not known
	root    int     // descriptor of the root, which its inode owns
	rootKey key
	limit   int
	began   time.Time         // see clock
	freeing func(freed) error // sees files without names before they are freed

	mu      sync.Mutex // guards all below, and the fields of inode that say so
	byID    map[uint64]*inode
	byKey   map[key]*inode // those whose node id is not their inode number
	peak    int            // the most that byID has held since it was made
	free    *time.Timer    // gives memory back: see shrink
	last    uint64         // counted node id given last
	recent  inode          // head of the ring of inodes that may be shelved
	fds     int            // descriptors of inodes
	open    int            // descriptors of handles
	kept    int            // descriptors of inodes that can't be opened again
	doomed  []int          // to be closed by unlock
	freed   []freed        // so, too
	orphans orphans
	ended   []*passage // to be ended by unlock
}

func newTable(root, limit int) (*table, error) {
	if limit == 0 {
		var err error
		if limit, err = fdLimit(); err != nil {
			return nil, err
		}
	}
	fd, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		_ = unix.Close(fd) // nothing was done with it
		return nil, err
	}
	k := keyOf(&st)
	n := &inode{key: k, id: fuse.FUSE_ROOT_ID, kind: uint32(st.Mode) & unix.S_IFMT, fd: fd, lookups: 1}
	t := &table{
		root:    fd,
		rootKey: k,
		limit:   limit,
		began:   time.Now(),
		byKey:   map[key]*inode{k: n},
		byID:    map[uint64]*inode{n.id: n},
		fds:     1,
	}
	if t.mount, t.mountID = handleMount(fd); t.mount >= 0 {
		t.export = exportOf(t.mount)
	}
	t.recent.prev, t.recent.next = &t.recent, &t.recent
	return t, nil
}

// unlock ends a critical section; descriptors are closed outside of it, since
// the last one of a file without links frees its blocks.
func (t *table) unlock() {
	doomed, last, ended, left := t.doomed, t.freed, t.ended, t.orphans.left
	t.doomed, t.freed, t.ended, t.orphans.left = nil, nil, nil, 0
	t.mu.Unlock()
	for _, p := range ended {
		p.end()
	}
	for _, fd := range doomed {
		_ = unix.Close(fd) // O_PATH: there is nothing to lose
	}
	for _, file := range last {
		t.letGo(file)
	}
	if left > 0 {
		t.mu.Lock()
		t.orphans.closing -= left
		t.mu.Unlock()
	}
}

// acquire is the inode that the kernel calls id, with a descriptor that stays
// open until release.
func (t *table) acquire(id uint64) (*inode, error) {
	t.mu.Lock()
	defer t.unlock()
	n := t.byID[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	n.users++
	n.pins++
	if n.fd < 0 {
		if err := t.reopen(n); err != nil {
			t.unpin(n)
			return nil, err
		}
	}
	t.touch(n)
	t.trim()
	return n, nil
}

// release is the end of acquire, enter or lookedUp.
func (t *table) release(n *inode) {
	t.mu.Lock()
	defer t.unlock()
	t.unpin(n)
}

func (t *table) unpin(n *inode) {
	n.pins--
	n.users--
	t.drop(n)
}

// enter takes over fd, an O_PATH descriptor of the file k, and answers with
// the file's inode, which the kernel now knows once more, acquired. fromHandle
// says that fd was opened by a handle (see inode).
func (t *table) enter(fd int, k key, kind uint32, fromHandle bool) *inode {
	t.mu.Lock()
	defer t.unlock()
	n := t.known(k)
	if n != nil && n.fd < 0 && !t.is(n, fd) {
		n = nil // the number belongs to a new file; the old one stays known by its id
	}
	switch {
	case n == nil:
		n = t.add(fd, k, kind)
		n.fromHandle = fromHandle
	case n.fd < 0:
		n.fd, n.fromHandle = fd, fromHandle
		t.fds++
	case n.fromHandle && !fromHandle && unix.Dup3(fd, n.fd, unix.O_CLOEXEC) == nil:
		n.fromHandle = false // the same number, now with a name, for all who use it
		t.doomed = append(t.doomed, fd)
	default:
		t.doomed = append(t.doomed, fd)
	}
	n.lookups++
	n.told = t.clock()
	n.users++
	n.pins++
	t.touch(n)
	t.trim()
	return n
}

// known is the newest inode of the file k, nil if there is none.
func (t *table) known(k key) *inode {
	if n := t.byKey[k]; n != nil {
		return n
	}
	if n := t.byID[k.ino]; n != nil && n.key == k {
		return n
	}
	return nil
}

// add makes the inode of the file k, open at fd.
func (t *table) add(fd int, k key, kind uint32) *inode {
	n := &inode{key: k, kind: kind, fd: fd}
	if t.export != nil && k.dev == t.rootKey.dev {
		n.generation, n.exported = t.export.generation(fd, k.ino)
	}
	n.id = k.ino
	if !n.exported || n.id <= fuse.FUSE_ROOT_ID || n.id >= counted || t.byID[n.id] != nil {
		t.last++
		n.id = counted | t.last
		t.byKey[k] = n
	}
	t.byID[n.id] = n
	t.peak = max(t.peak, len(t.byID))
	t.fds++
	return n
}

// lookedUp counts that the kernel is told once more of n, which is acquired.
func (t *table) lookedUp(n *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.lookups++
	n.told = t.clock()
}

// clock is the time in milliseconds; it comes round in 49 days.
func (t *table) clock() uint32 { return uint32(time.Since(t.began).Milliseconds()) }

// wasTold reports whether the kernel was told of the file k, by any name, less
// than that long ago, and has not forgotten it.
func (t *table) wasTold(k key, ago time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known(k)
	return n != nil && n.lookups > 0 && int64(t.clock()-n.told) < ago.Milliseconds()
}

// forget takes back count of what enter and lookedUp counted.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	defer t.unlock()
	n := t.byID[id]
	if n == nil || id == fuse.FUSE_ROOT_ID {
		return
	}
	n.lookups -= min(n.lookups, count)
	t.drop(n)
}

// hold and unhold say that a handle, with a descriptor of its own, lives on n.
func (t *table) hold(n *inode) {
	t.mu.Lock()
	defer t.unlock()
	n.users++
	t.open++
	t.trim()
}

func (t *table) unhold(n *inode) {
	t.mu.Lock()
	defer t.unlock()
	n.users--
	t.open--
	t.drop(n)
}

// drop removes n if neither the kernel nor we need it.
func (t *table) drop(n *inode) {
	if n.lookups > 0 || n.users > 0 {
		return
	}
	delete(t.byID, n.id)
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	}
	if p := n.passed.Load(); p != nil {
		t.ended = append(t.ended, p)
	}
	t.closeFd(n)
	t.shrink()
}

const (
	// manyInodes are worth the work of giving their memory back.
	manyInodes = 1 << 12
	// freeAfter is how long the table has to be in peace for that.
	freeAfter = time.Second
)

// shrink makes the maps anew when most of what they held is gone: a map keeps
// the room it ever had. When no more goes, the memory is given back to the
// system, which Go would be in no hurry to do.
func (t *table) shrink() {
	if t.peak < manyInodes || len(t.byID) > t.peak/4 {
		return
	}
	byID, byKey := make(map[uint64]*inode, len(t.byID)), make(map[key]*inode, len(t.byKey))
	maps.Copy(byID, t.byID)
	maps.Copy(byKey, t.byKey)
	t.byID, t.byKey, t.peak = byID, byKey, len(byID)
	if t.free == nil {
		t.free = time.AfterFunc(freeAfter, freeMemory) // stopped by close
	}
	t.free.Reset(freeAfter)
}

// freeMemory collects twice, since pools let go of what they hold at the
// second time only.
func freeMemory() {
	debug.FreeOSMemory()
	debug.FreeOSMemory()
}

// inUse reports whether something of ours uses the inode that the kernel calls id: a request,
// or an open file or directory.
func (t *table) inUse(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	return n != nil && n.users > 0
}

// idOf is the node id of an inode of the root's device.
func (t *table) idOf(ino uint64) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.known(key{t.rootKey.dev, ino})
	if n == nil {
		return 0, false
	}
	return n.id, true
}

func (t *table) stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{Inodes: len(t.byID), Fds: t.fds}
}

func (t *table) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free != nil {
		t.free.Stop()
	}
	var errs []error
	for _, n := range t.byID {
		if n.unnamed && n.fd >= 0 && n.kind == unix.S_IFREG {
			t.letGo(freed{n.fd, n.rec.Load()})
			n.fd = -1
		}
		if n.fd >= 0 {
			errs = append(errs, unix.Close(n.fd))
			n.fd = -1
		}
	}
	if t.mount >= 0 {
		errs = append(errs, unix.Close(t.mount))
	}
	t.byID, t.byKey, t.fds, t.peak = nil, nil, 0, 0
	return errors.Join(errs...)
}
