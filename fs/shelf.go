package fs

import (
	"bytes"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Shelving: the table bounds its descriptors by closing those of idle inodes.
//
// An inode whose descriptor was closed is found again by its file handle,
// where the filesystem has them and the daemon has CAP_DAC_READ_SEARCH;
// otherwise no descriptor is ever closed early. While it has no descriptor its
// number may come to belong to another file, so a lookup that meets it
// compares handles. Without a descriptor of ours, a file that loses its last
// name is gone (ESTALE) unless it is open.

// fdReserve is kept free of RLIMIT_NOFILE for the rest of the daemon: state
// directory, control socket, lookups under way.
const fdReserve = 256

// fdLimit is how many descriptors the table may have.
func fdLimit() (int, error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, fmt.Errorf("getrlimit: %w", err)
	}
	return max(int(min(r.Cur, 1<<30))-fdReserve, fdReserve), nil
}

// handleMount is a descriptor by which open_by_handle_at works here, and the
// number of its mount, or -1. An O_PATH descriptor would be refused.
func handleMount(root int) (mount, id int) {
	mount, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1
	}
	h, id, err := unix.NameToHandleAt(mount, "", unix.AT_EMPTY_PATH)
	if err == nil {
		var fd int
		if fd, err = unix.OpenByHandleAt(mount, h, unix.O_PATH|unix.O_CLOEXEC); err == nil {
			_ = unix.Close(fd) // it was only a trial
			return mount, id
		}
	}
	_ = unix.Close(mount) // it was only a trial
	return -1, -1
}

// crowded reports whether the user uid should open no more files: what is left of
// the descriptors is for lookups, and for root.
func (t *table) crowded(uid uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uid != 0 && t.open+t.kept >= t.limit-t.limit/8
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
// one without links is gone with its last descriptor, and in another mount,
// below the root, the handle is of another filesystem. A file that lost its links
// while it is open is there as long as that lasts, and lastClose sees to it then:
// who removes what he has open can't make it cost two descriptors.
//
// A filesystem that has to ask somebody for the links may say what it knows: the
// mutex is held, and must not wait for one that hangs.
func (t *table) shelve(n *inode) {
	var st unix.Statx_t
	err := unix.Statx(n.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_NLINK, &st)
	gone := err == nil && st.Nlink == 0
	stays := err == nil && (!gone || n.unnamed && n.users > n.pins)
	if stays && !n.exported && n.handle == nil {
		h, mount, e := unix.NameToHandleAt(n.fd, "", unix.AT_EMPTY_PATH)
		if e == nil && mount == t.mountID {
			n.handle = &h
		}
	}
	switch {
	case !stays || !n.exported && n.handle == nil:
		n.keep = true
		t.kept++
		t.leave(n)
	case gone:
		t.leave(n)
		t.doomed = append(t.doomed, n.fd) // and not freed: it is open
		n.fd = -1
		t.fds--
	default:
		t.closeFd(n)
	}
}

// lastClose is called before a descriptor of a handle on n is closed, which may be the
// last one of a file without a name. It sees to it that n has one of its own until
// release, and then for as long as the kernel knows n. nil: there is no need.
func (t *table) lastClose(n *inode) *inode {
	t.mu.Lock()
	unnamed := n.unnamed
	t.mu.Unlock()
	if !unnamed {
		return nil
	}
	n, err := t.acquire(n.id)
	if err != nil {
		return nil // there is none to be had: the file is gone with its last handle
	}
	return n
}

func (t *table) closeFd(n *inode) {
	t.leave(n)
	t.orphans.remove(n)
	if n.fd >= 0 {
		if n.unnamed && n.kind == unix.S_IFREG {
			t.freed = append(t.freed, freed{n.fd, n.rec.Load()})
		} else {
			t.doomed = append(t.doomed, n.fd)
		}
		n.fd = -1
		t.fds--
		if n.keep {
			t.kept--
		}
	}
}

// reopen gives n, which is pinned, its descriptor again. The mutex is not held
// while the filesystem is asked.
func (t *table) reopen(n *inode) error {
	handle := t.handle(n)
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
	n.fd, n.fromHandle = fd, true
	t.fds++
	return nil
}

// handle is the handle of n, which was shelved.
func (t *table) handle(n *inode) unix.FileHandle {
	if n.handle == nil {
		return t.export.handle(n.key.ino, n.generation)
	}
	return *n.handle
}

// is reports whether the file at fd is the one that n was before it was
// shelved.
func (t *table) is(n *inode, fd int) bool {
	if n.handle == nil {
		generation, ok := t.export.generation(fd, n.key.ino)
		return ok && generation == n.generation
	}
	return sameHandle(*n.handle, fd)
}

func sameHandle(h unix.FileHandle, fd int) bool {
	o, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	return err == nil && o.Type() == h.Type() && bytes.Equal(o.Bytes(), h.Bytes())
}

// nameless reports whether the backing kernel may know no name of n.
func (t *table) nameless(n *inode) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.fromHandle
}
