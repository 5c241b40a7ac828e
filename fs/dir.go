package fs

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream reads a directory. The offsets that the kernel sees are the
// backing filesystem's own (d_off), so a position stays good while entries
// come and go.
type dirStream struct {
	since uint32 // when the kernel dropped its names of the directory for this handle, 0: it did not (see listing)

	mu      sync.Mutex // guards all below
	fd      int
	pos     uint64 // offset of the first entry of rest
	buf     []byte
	rest    []byte // entries read and not yet delivered
	listing uint32 // that rest is for
}

// dirBuffer is how much is read at a time.
const dirBuffer = 32 << 10

// seek goes to an offset. Offset 0 (rewinddir) reads afresh, and so does another
// listing than the last.
func (d *dirStream) seek(off uint64, listing uint32) error {
	if off == d.pos && off != 0 && listing == d.listing {
		return nil
	}
	if _, err := unix.Seek(d.fd, int64(off), unix.SEEK_SET); err != nil {
		return err
	}
	d.pos, d.rest, d.listing = off, nil, listing
	return nil
}

// peek is the next entry and its size in rest, which is 0 at the end.
func (d *dirStream) peek() (e fuse.DirEntry, size int, err error) {
	if len(d.rest) == 0 {
		if d.buf == nil {
			d.buf = make([]byte, dirBuffer)
		}
		var n int
		err := again(func() (err error) {
			n, err = unix.Getdents(d.fd, d.buf)
			return err
		})
		if err != nil || n == 0 {
			return e, 0, err
		}
		d.rest = d.buf[:n]
	}
	// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name.
	size = int(binary.NativeEndian.Uint16(d.rest[16:]))
	name := d.rest[19:size]
	name = name[:bytes.IndexByte(name, 0)]
	return fuse.DirEntry{
		Ino:  binary.NativeEndian.Uint64(d.rest),
		Off:  binary.NativeEndian.Uint64(d.rest[8:]),
		Mode: uint32(d.rest[18]) << 12,
		Name: string(name),
	}, size, nil
}

func (d *dirStream) next(e *fuse.DirEntry, size int) {
	d.rest = d.rest[size:]
	d.pos = e.Off
}

// each gives add the entries from off on, for a listing, until it says that one
// does not fit. An error that comes after some entries is left for the next call.
func (d *dirStream) each(off uint64, listing uint32, add func(fuse.DirEntry) (fits bool)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.seek(off, listing); err != nil {
		return err
	}
	for some := false; ; some = true {
		e, size, err := d.peek()
		if err != nil && !some {
			return err
		}
		if err != nil || size == 0 || !add(e) {
			return nil
		}
		d.next(&e, size)
	}
}

// OpenDir opens a directory for reading.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := f.table.acquire(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.table.release(n)
	if f.table.crowded(in.Uid) {
		return status(unix.ENFILE)
	}
	fd, err := f.openAs(n.fd, unix.O_RDONLY|unix.O_DIRECTORY|int(in.Flags&unix.O_NOATIME))
	if err != nil {
		return status(err)
	}
	dir := &dirStream{fd: fd}
	out.OpenFlags, dir.since = f.listsFrom(n, fd, in.Flags)
	f.table.hold(n)
	out.Fh = f.handles.add(&handle{n: n, fd: fd, dir: dir})
	return fuse.OK
}

// ReadDir lists names.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h, err := f.directory(in.Fh)
	if err != nil {
		return status(err)
	}
	return status(h.dir.each(in.Offset, f.begins(h, in.Offset), func(e fuse.DirEntry) bool {
		e.Ino = f.number(key{h.n.key.dev, e.Ino})
		return out.AddDirEntry(e)
	}))
}

// ReadDirPlus lists names and looks each of them up, as the kernel would do
// next. A name that has gone in between is listed without the lookup, and so is
// one of a file that the kernel was told of just now: it has not asked for
// what it knows, but for the names (Linux 6.18 asks for both each time).
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h, err := f.directory(in.Fh)
	if err != nil {
		return status(err)
	}
	return status(h.dir.each(in.Offset, f.begins(h, in.Offset), func(e fuse.DirEntry) bool {
		k := key{h.n.key.dev, e.Ino}
		e.Ino = f.number(k)
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." || f.table.wasTold(k, f.fresh()) {
			return true // without a lookup, that is; the kernel counts none for the first two
		}
		if err := f.lookup(h.fd, e.Name, entry); err != nil {
			*entry = fuse.EntryOut{}
		}
		return true
	}))
}

func (f *FS) directory(fh uint64) (*handle, error) {
	h, err := f.handles.get(fh)
	if err == nil && h.dir == nil {
		return nil, unix.ENOTDIR
	}
	return h, err
}

// ReleaseDir is the end of an open directory.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.release(in.Fh) }

// FsyncDir makes the names in a directory durable.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.directory(in.Fh)
	if err != nil {
		return status(err)
	}
	if in.FsyncFlags&fdatasync != 0 {
		return status(again(func() error { return unix.Fdatasync(h.fd) }))
	}
	return status(again(func() error { return unix.Fsync(h.fd) }))
}
