// Package fs is the FUSE layer: it serves a backing directory through go-fuse's
// raw API and hands every byte that is read or written to package recovery.
//
// # Files, not paths
//
// Every operation works on a descriptor, or on a descriptor and one name
// (the *at calls). Paths are never built: an operation reaches the file that
// the kernel means, whatever is renamed meanwhile, works on files that have no
// name any more, follows no symbolic link and can't leave the root.
//
// There is one inode per file that the kernel knows, keyed by (device, inode)
// in a table that belongs to the mount. It holds an O_PATH descriptor. When
// descriptors run short, those of idle inodes are closed, least recently used
// first, and opened again through file handles (see table). Node id and
// generation are the backing's inode number and generation where file handles
// can be made of these (ext4, XFS), so that file handles of the mount last over
// FORGET and a new mount; elsewhere they are stale once the kernel forgot the
// file (see export).
//
// A root that is a clone of the backing's mount hides what is mounted below
// it; one that is only held by its directory crosses into that. All that is not
// on the root's device has inode numbers of its own (see FS.number).
//
// # Whose files
//
// The kernel checks permissions (default_permissions, ACLs included), so the
// daemon acts with its own rights, except where a new object gets an owner:
// that is done by threads that carry the caller's identity and umask, so that
// the backing filesystem itself applies setgid directories, default ACLs,
// special bits and quotas (see callers). What the kernel leaves to us
// (HANDLE_KILLPRIV_V2) is done in privs.go.
//
// # Data
//
// Cached and write-through: the only mode where both read(2) and mmap get
// recovered data. A READ reply is short only at the true end of file, since
// the kernel takes a short one for that and shrinks the file. Files opened
// for writing are open read-write below where that is allowed, because
// writeback of a mapping uses any writable handle and repair has to read.
// O_APPEND and O_DIRECT are the kernel's business and stripped: it sends the
// offset, and writeback of a part of a page must not be refused.
//
// What the kernel may keep in its page cache while others change the backing: see
// sight. What its FUSE needs so that no WRITE is lost where pages are dropped: see
// crossing.
//
// FLUSH is not asked for: close(2) on the filesystems we serve reports
// nothing that fsync(2) does not. Nothing here waits for anything but the
// backing filesystem, whose calls can't be interrupted, so handlers do not
// look at the cancel channels of requests. Callers can be killed all the same:
// see Answer.
//
// Locks are left to the kernel. ioctls are an allow-list (flags and projects),
// carried out as the caller: the daemon would run anything else with its own rights.
package fs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Config says what to serve, and how.
type Config struct {
	// Root is the backing directory, O_PATH or O_RDONLY. It stays the caller's
	// and is not used after New.
	Root   int
	Engine *recovery.Engine

	// How long the kernel may keep what it was told. What is changed in the
	// backing by another way is seen after that time at the latest.
	AttrTimeout, EntryTimeout time.Duration
	// Exclusive promises that nobody reaches the backing but through this
	// mount (it is over-mounted): page caches are never dropped on suspicion.
	Exclusive bool

	Protect  Protect // other than ProtectFull takes CAP_SYS_ADMIN; see CheckPassthrough
	ReadOnly bool
	NoAtime  bool // reads leave access times alone, for as far as the daemon may
	// StrictAtime says that every read moves the access time (the options of
	// Root's mount see to that): then it may not come from pages kept over an open.
	StrictAtime bool

	// Warn takes a line for whoever looks after the mount; nil: nobody wants it.
	Warn func(format string, args ...any)

	// MaxFds bounds the descriptors used for inodes and open files together;
	// open files have precedence. 0: RLIMIT_NOFILE less a reserve.
	MaxFds int
}

// FS implements fuse.RawFileSystem. Use it for one mount.
type FS struct {
	fuse.RawFileSystem // answers what is not implemented: ENOSYS

	config     Config
	engine     *recovery.Engine
	table      *table
	handles    handles
	callers    *callers
	generation uint64
	server     atomic.Pointer[fuse.Server]
	refused    atomic.Uint64 // opens that the kernel would not serve by passthrough
	killable   *killable     // what Answer gave
	stale      stale
	listings   listings

	saidReadOnly atomic.Bool // that the backing filesystem has become read-only
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New makes the filesystem over c.Root. The caller mounts it with
// MountOptions and closes it after the last request.
func New(c Config) (*FS, error) {
	callers, err := newCallers()
	if err != nil {
		return nil, fmt.Errorf("preparing to act for callers: %w", err)
	}
	if c.Protect != ProtectFull && !callers.privileged {
		callers.close()
		return nil, ErrUnprivileged
	}
	table, err := newTable(c.Root, c.MaxFds)
	if err != nil {
		callers.close()
		return nil, fmt.Errorf("opening the backing directory: %w", err)
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		config:        c,
		engine:        c.Engine,
		table:         table,
		handles:       handles{open: map[uint64]*handle{}},
		callers:       callers,
		// Counted node ids start again with each mount: the generation keeps
		// file handles of an earlier mount from naming other files. The
		// kernel keeps 32 bits of it.
		generation: uint64(rand.Uint32()),
		stale:      stale{pages: map[uint64]*ranges.Set{}},
	}
	f.stale.server = &f.server
	f.listings.drop = f.dropListing
	f.table.freeing = f.clearFreed
	f.engine.InUse(f.inUse)
	return f, nil
}

// MountOptions are the options that this filesystem needs to be right. The
// caller adds names, AllowOther and the way of mounting.
func (f *FS) MountOptions() *fuse.MountOptions {
	var disabled uint64
	if f.config.Protect == ProtectFull {
		disabled = fuse.CAP_PASSTHROUGH
	}
	return &fuse.MountOptions{
		Options:       []string{"default_permissions"},
		EnableAcl:     true,
		MaxWrite:      1 << 20,
		MaxBackground: 64,
		// Splicing from files answers short in front of poison, which the
		// kernel would take for the end of the file.
		DisableSplice:            true,
		ExplicitDataCacheControl: true, // see sight
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DONT_MASK |
			fuse.CAP_SETXATTR_EXT | fuse.CAP_EXPORT_SUPPORT,
		MaxStackDepth:        1, // of filesystems, where there is passthrough: this one over one that stands alone
		DisabledCapabilities: disabled,
	}
}

// Init is called by go-fuse before the first request.
func (f *FS) Init(s *fuse.Server) { f.server.Store(s) }

// String names the filesystem type.
func (f *FS) String() string { return "mendfs" }

// ErrNotMounted is Invalidate's answer before the filesystem is mounted.
var ErrNotMounted = errors.New("not mounted")

// Invalidate makes the kernel drop the pages of r of the backing inode ino
// (on the root's device) from its cache; dirty pages are written back first.
// It waits for pages that are locked by unanswered requests: never call it
// from inside a request, or holding a lock that a request may want.
func (f *FS) Invalidate(ino uint64, r ranges.Range) error {
	server := f.server.Load()
	if server == nil {
		return ErrNotMounted
	}
	id, ok := f.table.idOf(ino)
	if !ok || r.Empty() {
		return nil // the kernel has no pages of what it does not know
	}
	switch st := server.InodeNotify(id, r.Off, r.Len); st {
	case fuse.OK, fuse.ENOENT:
		return nil
	default:
		return fmt.Errorf("invalidating inode %d %v in the kernel: %w", ino, r, unix.Errno(st))
	}
}

// Stats counts what is held at the moment.
type Stats struct {
	Inodes  int `json:"inodes"`  // files known to the kernel, the root included
	Handles int `json:"handles"` // open files and directories
	Fds     int `json:"fds"`     // descriptors for both
	// Requests whose callers were killed and that still wait for the backing
	// filesystem.
	Abandoned int `json:"abandoned"`
}

// Stats may be called at any time.
func (f *FS) Stats() Stats {
	s := f.table.stats()
	s.Handles = f.handles.count()
	s.Fds += s.Handles
	s.Abandoned = f.killable.abandoned()
	return s
}

// Close releases all descriptors and threads. Call it once, when the last
// request has been answered.
func (f *FS) Close() error {
	err := f.killable.close()
	f.listings.close()
	f.stale.done.Wait() // the kernel is gone, and answers at once
	f.callers.close()
	last := func(n *inode) { f.table.lastClose(n) } // until the table closes
	return errors.Join(err, f.handles.close(last), f.table.close())
}

// status is the one place where errors become replies.
func status(err error) fuse.Status { return fuse.Status(recovery.Errno(err)) }

// caller says to recovery who asks.
func caller(c *fuse.Caller) recovery.Caller {
	return recovery.Caller{Pid: c.Pid, UID: c.Uid, Known: true}
}

// again repeats a call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
