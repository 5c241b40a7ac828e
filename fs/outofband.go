package fs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// What is done to files without anybody asking for it. None of it may run inside
// a request.

// Detected tells the engine what is listed of the file id; see
// recovery.Engine.Detected.
func (f *FS) Detected(id fileid.ID, path string, list recovery.Listed) error {
	return f.engine.Detected(id, path, f.live(id), list)
}

// live is what the engine has of the file; nil if nothing uses it. An inode for
// which the engine is just being asked is waited for, so that none is missed that
// was made before the list was known.
func (f *FS) live(id fileid.ID) *recovery.Inode {
	node, known := f.table.idOf(id.Ino)
	if !known {
		return nil
	}
	n, err := f.table.acquire(node)
	if err != nil {
		return nil // it is gone
	}
	defer f.table.release(n)
	if !f.table.isFile(n, id) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rec.Load()
}

// inUse is live for the engine, which asks inside of requests and must not wait: an
// inode that is just being made may be missed.
func (f *FS) inUse(id fileid.ID) *recovery.Inode {
	f.table.mu.Lock()
	defer f.table.mu.Unlock()
	n := f.table.known(key{f.table.rootKey.dev, id.Ino})
	if n == nil || n.rec.Load() == nil || !f.table.isFile(n, id) {
		return nil
	}
	return n.rec.Load()
}

// isFile reports whether n, which is acquired or found with the mutex held, is the file
// id: the number of one that is gone may be another's by now.
func (t *table) isFile(n *inode, id fileid.ID) bool {
	if n.fd < 0 {
		return id.HasHandle(t.handle(n))
	}
	found, err := fileid.Of(n.fd)
	return err == nil && found.Key() == id.Key()
}

// Reinitialize clears the poison that is listed in the file id, called path below
// the root: what the kernel has to write of these pages is written first, and
// what it has of them afterwards is dropped. It fails with
// recovery.ErrShared while the kernel serves the file by itself.
func (f *FS) Reinitialize(id fileid.ID, path string, pages []ranges.Range) error {
	n, err := f.find(id, path)
	if err != nil {
		return err
	}
	defer f.table.forget(n.id, 1)
	defer f.table.release(n)
	f.settleClosed(n) // before it is open here
	fd, err := fileid.Open(f.engine.Root, id, path, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, r := range pages {
		if err := f.Invalidate(id.Ino, r.Widen(ranges.PageSize)); err != nil && !errors.Is(err, ErrNotMounted) {
			return err
		}
	}
	f.changing(n, fd)
	defer f.changed(n, fd)
	defer f.dropStale(n)
	return f.engine.Open(n.recovery(f.engine, fd), fd).Reinitialize()
}

// settleClosed lets the engine have n where no mapping is left of what the kernel
// served by itself.
func (f *FS) settleClosed(n *inode) {
	p := n.passed.Load()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode.passing() == 0 && p.mode.lingers {
		f.settle(n, p)
	}
}

// find is the inode of the file id, acquired and looked up once, as if the kernel
// had asked for it: who asks meanwhile gets the same.
func (f *FS) find(id fileid.ID, path string) (*inode, error) {
	fd, err := fileid.Open(f.engine.Root, id, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd) // the same
		return nil, fmt.Errorf("%s: no regular file: %w", path, unix.EINVAL)
	}
	return f.table.enter(fd, keyOf(&st), unix.S_IFREG, true), nil
}
