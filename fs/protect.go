package fs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Passthrough: the kernel does I/O on backing files by itself (Linux ≥ 6.9).
// What is served so, and when, is ioMode's to say.
//
// A backing file is registered once for all opens of an inode at the same time,
// since the kernel refuses two of them (EBUSY, which open makes EIO), and as
// long as there is one: a registered file is an open file of the backing
// filesystem, which should not stay longer than the application's.

// passage is how an inode is open, where the kernel may do I/O by itself.
type passage struct {
	mu      sync.Mutex // guards all below but asked and cached; held while the service of an open is decided
	mode    ioMode
	backing int32  // what the kernel calls the backing file; 0: not registered
	unshare func() // what Share gave; nil: the engine has not been told of anything
	writers int    // opens in passthrough that may write
	wrote   bool   // a mapping of one that is closed may be left

	asked  atomic.Uint32 // how long the kernel may keep attributes, from here on
	cached atomic.Int32  // opens that use the kernel's page cache
}

const (
	askLater  uint32 = iota // as on all inodes
	askSoon                 // within a second: a mapping may write
	askAlways               // open for writing
)

// soon is how long a change by a mapping may stay unseen, when its file is closed.
const soon = time.Second

// pass decides how the open h of n is served, and says it to the kernel.
func (f *FS) pass(h *handle, flags uint32, c *fuse.Caller, out *fuse.OpenOut) error {
	p := h.n.passage()
	p.mu.Lock()
	defer p.mu.Unlock()
	protect, err := f.protectOf(p, h)
	if err != nil {
		return err
	}
	h.service = p.mode.next(protect,
		func() bool { return f.damaged(h.n, h.fd) },
		func() bool { return f.unused(h.fd) })
	if h.service != cached && flags&unix.O_DIRECT != 0 {
		if err := f.takesDirect(h.fd, flags); err != nil {
			return err // the kernel would make it EIO
		}
	}
	if h.service != cached && p.backing == 0 {
		err := f.register(p, h, c)
		switch {
		case err == nil:
		case p.mode.lingers:
			return err // anything but passthrough would not go with the mapping
		default:
			f.refused.Add(1)
			h.service = cached
		}
	}
	p.mode.opened(h.service)
	p.tell(h.n.rec.Load())
	if h.service == cached {
		if p.cached.Add(1) > 1 && (f.config.Exclusive || f.unchanged(h.n, h.fd)) { // only a first open can find what passthrough has changed
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		}
		return nil
	}
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
	out.BackingID = p.backing
	if h.service == direct {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	if h.writes {
		p.writers++
		if p.fresh() {
			// What the kernel knows of times, size and setuid bits will not be true
			// for long. Without pages to drop, this waits for nothing.
			_ = f.server.Load().InodeNotify(h.n.id, -1, 0) // ENOENT: it is just being made
		}
	}
	return nil
}

// protectOf is what the kernel may serve of h by itself: nothing of an
// append-only file, which it would let be mapped and overwritten. What was
// opened before the file became one stays as it is, as on the backing, and an
// open to append does not go with that: EBUSY. The caller holds p.mu.
func (f *FS) protectOf(p *passage, h *handle) (Protect, error) {
	var st unix.Statx_t
	err := statx(h.fd, &st)
	if err != nil || !h.appends && st.Attributes&unix.STATX_ATTR_APPEND == 0 {
		return f.config.Protect, err
	}
	p.awaitReleases()
	switch {
	case p.mode.passing() == 0 && p.mode.settle(func() bool { return f.unused(h.fd) }):
		return ProtectFull, nil
	case h.appends:
		return ProtectFull, unix.EBUSY
	}
	return f.config.Protect, nil
}

// releaseTime is how long after close(2) has returned RELEASE is waited for.
const releaseTime = 100 * time.Millisecond

// awaitReleases gives what was closed a moment ago the time to be known as closed.
// The caller holds p.mu, which is let go of meanwhile.
func (p *passage) awaitReleases() {
	for end := time.Now().Add(releaseTime); p.mode.passing() > 0 && time.Now().Before(end); {
		p.mu.Unlock()
		time.Sleep(time.Millisecond)
		p.mu.Lock()
	}
}

// unpass is the end of the open h.
func (f *FS) unpass(h *handle) {
	p := h.n.passage()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode.closed(h.service)
	if h.service == cached {
		p.cached.Add(-1)
	}
	if h.service != cached && h.writes {
		p.writers--
		p.wrote = true
	}
	if p.mode.passing() == 0 && p.backing != 0 {
		_ = f.server.Load().UnregisterBackingFd(p.backing) // ours, so it can't fail
		p.backing = 0
	}
	p.fresh()
}

// passage is made on the first open.
func (n *inode) passage() *passage {
	if p := n.passed.Load(); p != nil {
		return p
	}
	n.passed.CompareAndSwap(nil, &passage{})
	return n.passed.Load()
}

// end is after FORGET: no mapping is left.
func (p *passage) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode.lingers = false
	p.tell(nil)
}

// tell lets the engine know whether the kernel may write the file.
func (p *passage) tell(rec *recovery.Inode) {
	switch shared := p.mode.isShared(); {
	case shared && p.unshare == nil:
		p.unshare = rec.Share()
	case !shared && p.unshare != nil:
		p.unshare()
		p.unshare, p.wrote = nil, false
		p.fresh()
	}
}

// fresh sets how long attributes may be kept, and reports whether that has just
// become not at all.
func (p *passage) fresh() (now bool) {
	asked := askLater
	switch {
	case p.writers > 0:
		asked = askAlways
	case p.wrote:
		asked = askSoon
	}
	return p.asked.Swap(asked) != asked && asked == askAlways
}

// attrTimeout is how long the kernel may keep attributes of n: what it writes by
// way of mappings of the backing file changes times that only the backing has.
func (f *FS) attrTimeout(n *inode) time.Duration {
	p := n.passed.Load()
	switch {
	case p == nil:
		return f.config.AttrTimeout
	case p.asked.Load() == askAlways:
		return 0
	case p.asked.Load() == askSoon:
		return min(soon, f.config.AttrTimeout)
	}
	return f.config.AttrTimeout
}

// damaged reports whether the file n, open at fd, has known poison: the engine
// knows something, or whoever keeps a list does.
func (f *FS) damaged(n *inode, fd int) bool {
	return n.rec.Load().Damaged() || f.engine.Medium.Open(fd).Corroborate(ranges.Range{Len: 1 << 62}) == media.Listed
}

// unused reports whether the file open at fd is open nowhere else, nor mapped.
// The kernel gives a lease for writing to nobody else (Linux 6.18, fs/locks.c,
// check_conflicting_open; TestUnused); it is given back at once. Whatever stands
// in the way, such as a filesystem without leases, is taken for a use.
func (f *FS) unused(fd int) bool {
	owner, err := ownerOf(fd)
	if err != nil {
		return false
	}
	err = f.callers.as(owner, func() error { // the right to a lease is the owner's
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
			return err
		}
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	})
	return err == nil
}

func ownerOf(fd int) (identity, error) {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return identity{}, err
	}
	return identity{uid: st.Uid, gid: st.Gid}, nil
}

// takesDirect asks the backing filesystem whether it does direct I/O.
func (f *FS) takesDirect(fd int, flags uint32) error {
	own, err := f.openAs(fd, int(flags&unix.O_ACCMODE)|unix.O_DIRECT)
	if err != nil {
		return err
	}
	return unix.Close(own)
}
