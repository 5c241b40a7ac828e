package fs

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fdReserve is kept free of RLIMIT_NOFILE for the rest of the daemon: state
// directory, control socket, lookups under way.
const fdReserve = 256

// table holds the inodes that the kernel knows, and bounds their descriptors.
//
// An inode stays as long as the kernel remembers it (lookups), or as
// something of ours uses it (users). All of that changes under one mutex, so
// a FORGET and a LOOKUP that race come one after the other: either the lookup
// finds the inode and it stays, or it is gone and the lookup makes a new one.
//
// An inode whose descriptor was closed is found again by its file handle,
// where the filesystem has them and the daemon has CAP_DAC_READ_SEARCH;
// otherwise no descriptor is ever closed early. While it has no descriptor its
// number may come to belong to another file, so a lookup that meets it
// compares handles. Without a descriptor of ours, a file that loses its last
// name is gone (ESTALE) unless it is open.
type table struct {
	mount int    // for open_by_handle_at; -1 if handles can't be used
	dev   uint64 // of the root
	limit int

	mu     sync.Mutex // guards all below, and the fields of inode that say so
	byKey  map[key]*inode
	byID   map[uint64]*inode
	last   uint64 // node id given last
	recent inode  // head of the ring of inodes that may lose their descriptor
	fds    int    // descriptors of inodes
	open   int    // descriptors of handles
	doomed []int  // to be closed by unlock
}

func newTable(root, limit int) (*table, error) {
	if limit == 0 {
		var r unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
			return nil, fmt.Errorf("getrlimit: %w", err)
		}
		limit = max(int(min(r.Cur, 1<<30))-fdReserve, fdReserve)
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
		mount: handleMount(fd),
		dev:   k.dev,
		limit: limit,
		byKey: map[key]*inode{k: n},
		byID:  map[uint64]*inode{n.id: n},
		last:  n.id,
		fds:   1,
	}
	t.recent.prev, t.recent.next = &t.recent, &t.recent
	return t, nil
}

// handleMount is a descriptor by which open_by_handle_at works here, or -1.
// An O_PATH descriptor would be refused.
func handleMount(root int) int {
	mount, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	h, _, err := unix.NameToHandleAt(mount, "", unix.AT_EMPTY_PATH)
	if err == nil {
		var fd int
		if fd, err = unix.OpenByHandleAt(mount, h, unix.O_PATH|unix.O_CLOEXEC); err == nil {
			_ = unix.Close(fd) // it was only a trial
			return mount
		}
	}
	_ = unix.Close(mount) // it was only a trial
	return -1
}

// unlock ends a critical section; descriptors are closed outside of it, since
// the last one of a file without links frees its blocks.
func (t *table) unlock() {
	doomed := t.doomed
	t.doomed = nil
	t.mu.Unlock()
	for _, fd := range doomed {
		_ = unix.Close(fd) // O_PATH: there is nothing to lose
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

// reopen gives n, which is pinned, its descriptor again. The mutex is not held
// while the filesystem is asked.
func (t *table) reopen(n *inode) error {
	handle := *n.handle
	t.mu.Unlock()
	var fd int
	err := again(func() (err error) {
		fd, err = unix.OpenByHandleAt(t.mount, handle, unix.O_PATH|unix.O_CLOEXEC)
		return err
	})
	t.mu.Lock()
	if err != nil {
		return fmt.Errorf("open_by_handle_at: %w", err)
	}
	if n.fd >= 0 { // somebody was faster
		t.doomed = append(t.doomed, fd)
		return nil
	}
	n.fd = fd
	t.fds++
	return nil
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
// the file's inode, which the kernel now knows once more, acquired.
func (t *table) enter(fd int, k key, kind uint32) *inode {
	t.mu.Lock()
	defer t.unlock()
	n := t.byKey[k]
	if n != nil && n.fd < 0 && !sameHandle(*n.handle, fd) {
		n = nil // the number belongs to a new file; the old one stays known by its id
	}
	switch {
	case n == nil:
		t.last++
		n = &inode{key: k, id: t.last, kind: kind, fd: fd}
		t.byKey[k], t.byID[n.id] = n, n
		t.fds++
	case n.fd < 0:
		n.fd = fd
		t.fds++
	default:
		t.doomed = append(t.doomed, fd)
	}
	n.lookups++
	n.users++
	n.pins++
	t.touch(n)
	t.trim()
	return n
}

// lookedUp counts that the kernel is told once more of n, which is acquired.
func (t *table) lookedUp(n *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.lookups++
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
	t.closeFd(n)
}

func (t *table) closeFd(n *inode) {
	t.leave(n)
	if n.fd >= 0 {
		t.doomed = append(t.doomed, n.fd)
		n.fd = -1
		t.fds--
	}
}

// touch makes n the most recently used; leave takes it out of the ring.
func (t *table) touch(n *inode) {
	if t.mount < 0 || n.keep || n.id == fuse.FUSE_ROOT_ID {
		return
	}
	t.leave(n)
	n.prev, n.next = &t.recent, t.recent.next
	n.prev.next, n.next.prev = n, n
}

func (t *table) leave(n *inode) {
	if n.next == nil {
		return
	}
	n.prev.next, n.next.prev = n.next, n.prev
	n.prev, n.next = nil, nil
}

// trim closes descriptors of idle inodes until there are few enough.
func (t *table) trim() {
	for n := t.recent.prev; n != &t.recent && t.fds+t.open > t.limit; {
		prev := n.prev
		if n.pins == 0 {
			t.shelve(n)
		}
		n = prev
	}
}

// shelve closes the descriptor of n, unless it is the only way to the file:
// one without links is gone with its last descriptor.
func (t *table) shelve(n *inode) {
	var st unix.Statx_t
	err := statx(n.fd, &st)
	if err == nil && st.Nlink > 0 && n.handle == nil {
		var h unix.FileHandle
		if h, _, err = unix.NameToHandleAt(n.fd, "", unix.AT_EMPTY_PATH); err == nil {
			n.handle = &h
		}
	}
	if err != nil || st.Nlink == 0 {
		n.keep = true
		t.leave(n)
		return
	}
	t.closeFd(n)
}

func sameHandle(h unix.FileHandle, fd int) bool {
	o, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	return err == nil && o.Type() == h.Type() && bytes.Equal(o.Bytes(), h.Bytes())
}

// idOf is the node id of an inode of the root's device.
func (t *table) idOf(ino uint64) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[key{t.dev, ino}]
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
	var errs []error
	for _, n := range t.byID {
		if n.fd >= 0 {
			errs = append(errs, unix.Close(n.fd))
			n.fd = -1
		}
	}
	if t.mount >= 0 {
		errs = append(errs, unix.Close(t.mount))
	}
	t.byID, t.byKey, t.fds = nil, nil, 0
	return errors.Join(errs...)
}
