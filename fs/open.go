package fs

import (
	"errors"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
)

// handle is an open file or directory.
type handle struct {
	n       *inode
	fd      int
	file    *recovery.File // nil for directories
	writes  bool
	appends bool       // fd is O_APPEND, for append-only files
	service service    // cached, where there is no passthrough
	dir     *dirStream // nil for files
}

// handles are the open files of the mount, by the kernel's number for them.
type handles struct {
	mu   sync.RWMutex // guards all below
	open map[uint64]*handle
	last uint64
}

func (t *handles) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.open[t.last] = h
	if h.writes {
		h.n.writers.Add(1)
	}
	return t.last
}

func (t *handles) get(fh uint64) (*handle, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	h := t.open[fh]
	if h == nil {
		return nil, unix.EBADF
	}
	return h, nil
}

// file is get for files.
func (t *handles) file(fh uint64) (*handle, error) {
	h, err := t.get(fh)
	if err == nil && h.file == nil {
		return nil, unix.EBADF
	}
	return h, err
}

func (t *handles) remove(fh uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[fh]
	delete(t.open, fh)
	if h != nil && h.writes {
		h.n.writers.Add(-1)
	}
	return h
}

func (t *handles) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.open)
}

// close calls last before it closes a descriptor.
func (t *handles) close(last func(*inode)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, h := range t.open {
		last(h.n)
		errs = append(errs, unix.Close(h.fd))
	}
	t.open = nil
	return errors.Join(errs...)
}

// Open opens a regular file; the kernel opens all others itself.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	writes := in.Flags&unix.O_ACCMODE != unix.O_RDONLY
	if err := f.writable(); err != nil && writes {
		return status(err)
	}
	n, err := f.table.acquire(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.table.release(n)
	switch {
	case n.kind != unix.S_IFREG:
		return status(unix.ENXIO)
	case f.table.crowded(in.Uid):
		return status(unix.ENFILE)
	}
	fd, appends, err := f.reopen(n.fd, in.Flags)
	if err != nil {
		return status(f.reachable(n, err))
	}
	if f.keepsCache(n, fd, in.Flags) {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	if writes {
		n.privileged() // for all we know
	}
	return status(f.opened(&handle{n: n, fd: fd, writes: writes, appends: appends}, in.Flags, &in.Caller, out))
}

// keepsCache reports whether the kernel may keep the pages it has of n, open at
// fd with flags: nobody can have changed the file since. Where there is passthrough,
// pass knows.
//
// While somebody has n open for writing no page is dropped for the sake of relatime:
// one that is dropped as a write sets out may come back old (see crossing;
// TestOpensKeepWhatIsWritten in tests/coherence). Who asks for strictatime gets it.
func (f *FS) keepsCache(n *inode, fd int, flags uint32) bool {
	switch {
	case f.config.Protect != ProtectFull, f.config.StrictAtime:
		return false
	case f.config.Exclusive:
		return true
	}
	return f.unchanged(n, fd) && (n.writers.Load() > 0 || !f.movesAtime(n, fd, flags))
}

// movesAtime reports whether the next read of n, open at fd with flags, is one that relatime
// moves the access time for (Linux 6.18, fs/inode.c, relatime_need_update;
// TestAccessTimes in tests/posix). Only one that reaches the backing does.
func (f *FS) movesAtime(n *inode, fd int, flags uint32) bool {
	var st unix.Statx_t
	if f.config.NoAtime || flags&unix.O_NOATIME != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY || n.stat(fd, &st) != nil {
		return false
	}
	at := func(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }
	read := at(st.Atime)
	return !read.After(at(st.Mtime)) || !read.After(at(st.Ctime)) || time.Since(read) >= 24*time.Hour
}

// opened gives the kernel the handle h, for an open with flags by c. It takes
// h.fd over.
func (f *FS) opened(h *handle, flags uint32, c *fuse.Caller, out *fuse.OpenOut) error {
	h.file = f.engine.Open(h.n.recovery(f.engine, h.fd), h.fd)
	if f.config.Protect != ProtectFull {
		if err := f.pass(h, flags, c, out); err != nil {
			_ = unix.Close(h.fd) // nothing was done with it
			return err
		}
	}
	if h.appends {
		// The kernel does not know that the file is append-only, and would let it be
		// mapped for writing, and pages be changed that nothing may be written to
		// (TestAppendOnly). With direct I/O it shares no mapping and keeps no page.
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	f.table.hold(h.n)
	out.Fh = f.handles.add(h)
	out.OpenFlags |= fuse.FOPEN_NOFLUSH
	return nil
}

// kept are the flags of an application's open that mean something below.
const kept = unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME | unix.O_NONBLOCK

// reopen opens the file that fd, maybe O_PATH, is of, as an application asked
// for with flags: read-write rather than write-only, where that is allowed.
// An append-only file (chattr +a) can't be opened for writing without
// O_APPEND; appends says that it was needed.
func (f *FS) reopen(fd int, flags uint32) (own int, appends bool, err error) {
	modes := []int{int(flags & unix.O_ACCMODE)}
	if modes[0] == unix.O_WRONLY {
		modes = []int{unix.O_RDWR, unix.O_WRONLY}
	}
	for _, app := range []int{0, int(flags & unix.O_APPEND)} {
		for _, mode := range modes {
			own, err = f.openAs(fd, mode|app|int(flags&kept))
			if err == nil {
				return own, app != 0, nil
			}
		}
		if !errors.Is(err, unix.EPERM) {
			break
		}
	}
	return -1, false, err
}

// openAs opens, with exactly these flags, the file that fd is of.
func (f *FS) openAs(fd, flags int) (own int, err error) {
	if f.config.NoAtime {
		flags |= unix.O_NOATIME
	}
	err = again(func() (err error) {
		own, err = unix.Open(procPath(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	if errors.Is(err, unix.EPERM) && f.config.NoAtime {
		// Not the daemon's file: then the access time has to move.
		err = again(func() (err error) {
			own, err = unix.Open(procPath(fd), flags&^unix.O_NOATIME|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
			return err
		})
	}
	return own, err
}

// Create makes and opens a file. If it is there already after all (it was made
// in the backing directory, behind a name that the kernel took for free),
// the kernel looks again, which is what ESTALE makes it do: so that permissions
// are checked as for every open.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir, err := f.change(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	err = f.create(in, dir.fd, out, func(flags int, mode uint32) (int, error) {
		return unix.Openat(dir.fd, name, flags|unix.O_CREAT|unix.O_EXCL, mode)
	})
	if errors.Is(err, unix.EEXIST) && in.Flags&unix.O_EXCL == 0 {
		err = unix.ESTALE
	}
	return status(err)
}

// Tmpfile makes and opens a file without a name.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if err := f.writable(); err != nil {
		return status(err)
	}
	dir, err := f.table.acquire(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.table.release(dir)
	err = f.create(in, dir.fd, out, func(flags int, mode uint32) (int, error) {
		// O_EXCL: it may never be given a name.
		flags |= unix.O_TMPFILE | int(in.Flags&unix.O_EXCL)
		return unix.Open(procPath(dir.fd), flags, mode)
	})
	if err == nil {
		f.table.neverNamed(out.NodeId)
	}
	return status(err)
}

// create opens a new file as the caller and tells the kernel of it.
func (f *FS) create(in *fuse.CreateIn, dir int, out *fuse.CreateOut, open func(flags int, mode uint32) (int, error)) error {
	if f.table.crowded(in.Uid) {
		return unix.ENFILE
	}
	var fd int
	err := f.callers.making(maker(&in.Caller, in.Umask, in.Mode), dir, in.Mode&07777, func(mode uint32) (err error) {
		fd, err = open(unix.O_RDWR|unix.O_CLOEXEC|int(in.Flags&kept), mode)
		return err
	})
	if err != nil {
		return err
	}
	n, err := f.made(fd, &out.EntryOut)
	if err != nil {
		_ = unix.Close(fd) // nothing was written
		return err
	}
	defer f.table.release(n)
	if err := f.opened(&handle{n: n, fd: fd, writes: true}, in.Flags, &in.Caller, &out.OpenOut); err != nil {
		f.table.forget(n.id, 1)
		return err
	}
	out.SetAttrTimeout(f.attrTimeout(n))
	return nil
}

// made enters the file that was just created and opened at fd.
func (f *FS) made(fd int, out *fuse.EntryOut) (*inode, error) {
	path, err := f.openPath(fd)
	if err != nil {
		return nil, err
	}
	return f.enter(path, false, out)
}

func (f *FS) openPath(fd int) (path int, err error) {
	err = again(func() (err error) {
		path, err = unix.Open(procPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	})
	return path, err
}

// Release is the end of an open file.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.release(in.Fh) }

func (f *FS) release(fh uint64) {
	h := f.handles.remove(fh)
	if h == nil {
		return
	}
	if n := f.table.lastClose(h.n); n != nil {
		defer f.table.release(n)
	}
	_ = unix.Close(h.fd) // errors of writing are fsync's to report, as on the backing
	if h.file != nil && f.config.Protect != ProtectFull {
		f.unpass(h)
	}
	f.table.unhold(h.n)
}
