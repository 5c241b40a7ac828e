package fs

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/fileid"
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
//
// The kernel keeps the credentials of the thread that registers, and does all
// I/O of these opens with them. So that thread is the opener, as far as the
// backing filesystem looks: setuid bits are cleared, quotas and reserved blocks
// count. Root shares no rights of its own with those who open the file after
// it: for root the file's owner stands, or nobody if that is root and others may
// write the file. Whoever it is has no CAP_FSETID: a write by root clears setuid
// bits, too, as no other open may be allowed to leave them (docs/limits.md).

// passage is how an inode is open, where the kernel may do I/O by itself.
type passage struct {
	mu      sync.Mutex // guards all below but asked; held while the service of an open is decided
	mode    ioMode
	backing int32  // what the kernel calls the backing file; 0: not registered
	unshare func() // what Share gave; nil: the engine has not been told of anything
	writers int    // opens in passthrough that may write
	wrote   bool   // a mapping of one that is closed may be left

	asked atomic.Uint32 // how long the kernel may keep attributes, from here on
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
// open to append does not go with that: EBUSY.
func (f *FS) protectOf(p *passage, h *handle) (Protect, error) {
	var st unix.Statx_t
	err := statx(h.fd, &st)
	switch {
	case err != nil || !h.appends && st.Attributes&unix.STATX_ATTR_APPEND == 0:
		return f.config.Protect, err
	case p.mode.passing() == 0 && p.mode.settle(func() bool { return f.unused(h.fd) }):
		return ProtectFull, nil
	case h.appends:
		return ProtectFull, unix.EBUSY
	}
	return f.config.Protect, nil
}

// unpass is the end of the open h.
func (f *FS) unpass(h *handle) {
	p := h.n.passage()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode.closed(h.service)
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

// register makes the backing file of h known to the kernel.
func (f *FS) register(p *passage, h *handle, c *fuse.Caller) error {
	who := identity{uid: c.Uid, gid: c.Gid}
	if who.uid == 0 {
		var st unix.Statx_t
		if err := statx(h.fd, &st); err != nil {
			return err
		}
		who = identity{uid: st.Uid, gid: st.Gid}
		if who.uid == 0 && st.Mode&0o022 != 0 {
			who.uid = media.Nobody // no blocks are reserved for those who may write root's file
		}
	}
	// Read-only: one that is open for writing can't be executed.
	fd, err := f.openAs(h.fd, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p.backing, err = f.registerAs(who, fd)
	return err
}

func (f *FS) registerAs(who identity, fd int) (id int32, err error) {
	err = f.callers.as(who, func() error {
		return registering(func() error {
			var errno unix.Errno
			id, errno = f.server.Load().RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
			if errno != 0 {
				return errno
			}
			return nil
		})
	})
	return id, err
}

// registering runs call, in a thread that is locked, with the right to register and
// without rights that the I/O to come must not have.
func registering(call func() error) error {
	before, err := getCaps()
	if err != nil {
		return err
	}
	caps := before
	caps.effective |= bits(unix.CAP_SYS_ADMIN) & caps.permitted
	caps.effective &^= bits(unix.CAP_FSETID, unix.CAP_SYS_RESOURCE)
	if err := caps.set(); err != nil {
		return err
	}
	return errors.Join(call(), before.set())
}

// ErrNoPassthrough says that the kernel has no FUSE passthrough.
var ErrNoPassthrough = errors.New("this kernel has no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)")

// ErrUnprivileged says that the daemon may not register backing files for others.
var ErrUnprivileged = errors.New("passthrough is for root, with CAP_SYS_ADMIN")

// CheckPassthrough finds out, by trying, whether the kernel can serve files of
// the backing directory by itself. Call it when the server has begun.
func (f *FS) CheckPassthrough() error {
	if f.server.Load().KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return ErrNoPassthrough
	}
	root, err := f.table.acquire(fuse.FUSE_ROOT_ID)
	if err != nil {
		return err
	}
	defer f.table.release(root)
	fd, err := f.anyFile(root)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	id, err := f.registerAs(identity{}, fd)
	if err != nil {
		return fmt.Errorf("registering a backing file: %w", err)
	}
	if errno := f.server.Load().UnregisterBackingFd(id); errno != 0 {
		return fmt.Errorf("giving a backing file back: %w", errno)
	}
	return nil
}

// anyFile opens a regular file on the filesystem of root: one without a name, or
// else the first to be found; -1 if there is none.
func (f *FS) anyFile(root *inode) (int, error) {
	if fd, err := unix.Open(procPath(root.fd), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
		return fd, nil
	}
	below, err := os.OpenRoot(procPath(root.fd))
	if err != nil {
		return -1, err
	}
	defer below.Close()
	fd := -1
	err = iofs.WalkDir(below.FS(), ".", func(path string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // another will do
		}
		file, err := below.Open(path)
		if err != nil {
			return nil
		}
		defer file.Close()
		if fd, err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		return iofs.SkipAll
	})
	return fd, err
}

// Protection is what the kernel serves by itself at the moment.
type Protection struct {
	Passthrough int    // inodes that are open so
	Refused     uint64 // opens that the kernel would not take, served by us
	Unprotected []Unprotected
}

// Unprotected is a file with known poison of which the kernel serves more than
// it would if it were opened now: its programs have to open it again.
type Unprotected struct {
	Path  string // below the root
	Opens int    // in plain passthrough; 0: only a mapping may be left
}

// Protection may be called at any time.
func (f *FS) Protection() Protection {
	report := Protection{Refused: f.refused.Load()}
	for _, id := range f.table.passed() {
		n, err := f.table.acquire(id)
		if err != nil {
			continue // it is gone
		}
		f.protection(n, &report)
		f.table.release(n)
	}
	return report
}

func (f *FS) protection(n *inode, report *Protection) {
	p := n.passage()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode.passing() > 0 {
		report.Passthrough++
	}
	if f.config.Protect != ProtectKnown || !f.damaged(n, n.fd) {
		return
	}
	if p.mode.opens[through] > 0 || p.mode.passing() == 0 && p.mode.lingers && !f.settle(n, p) {
		report.Unprotected = append(report.Unprotected, Unprotected{fileid.Path(f.config.Root, n.fd), p.mode.opens[through]})
	}
}

// settle finds out whether a mapping is left of n, which is not open in
// passthrough.
func (f *FS) settle(n *inode, p *passage) (settled bool) {
	fd, err := f.openAs(n.fd, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	settled = p.mode.settle(func() bool { return f.unused(fd) })
	p.tell(n.rec.Load())
	return settled
}

// passed are the files that were ever opened in a mode with passthrough.
func (t *table) passed() []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []uint64
	for id, n := range t.byID {
		if n.passed.Load() != nil {
			ids = append(ids, id)
		}
	}
	return ids
}
