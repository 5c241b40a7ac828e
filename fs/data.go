package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Read never answers short before the end of the file: the kernel would take
// it for the end, and shrink the file.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := f.handles.file(in.Fh)
	if err != nil {
		return nil, status(err)
	}
	n := 0
	read := func() { n, err = h.file.Read(buf, int64(in.Offset), caller(&in.Caller)) }
	if h.fillsCache() {
		h.n.uncrossed(ranges.Range{Off: int64(in.Offset), Len: int64(len(buf))}, read)
	} else {
		read()
	}
	f.dropStale(h.n)
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write writes through. A writeback of a mapping comes from the kernel, by
// way of any handle that can write, and nobody knows who dirtied the page.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, err := f.handles.file(in.Fh)
	if err != nil {
		return 0, status(err)
	}
	writeback := in.WriteFlags&fuse.WRITE_CACHE != 0
	if h.appends && writeback {
		// The offset would be ignored: pwrite appends (man 2 pwrite, BUGS).
		return 0, status(unix.EPERM)
	}
	f.changing(h.n, h.fd)
	defer f.changed(h.n, h.fd)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := f.dropPrivs(h.n, h.fd, &in.Caller); err != nil {
			return 0, status(err)
		}
	}
	who := caller(&in.Caller)
	if writeback {
		who = recovery.Caller{}
	}
	r := ranges.Range{Off: int64(in.Offset), Len: int64(len(data))}
	cross := h.n.crossing()
	cross.start(r)
	defer cross.end(r)
	n, err := h.file.Write(data, r.Off, writeback, who)
	f.dropStale(h.n)
	if n > 0 {
		return uint32(n), fuse.OK // the error, if it stays, is that of the next write
	}
	return 0, status(err)
}

// Flush is not asked for again.
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// fdatasync is the bit in FsyncIn that asks for data only.
const fdatasync = 1

// Fsync makes a file durable. The kernel asks for it after each write with O_SYNC,
// O_DSYNC, RWF_SYNC or RWF_DSYNC too (tests/durable).
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.handles.file(in.Fh)
	if err != nil {
		return status(err)
	}
	return status(again(func() error { return h.file.Sync(in.FsyncFlags&fdatasync == 0) }))
}

// Fallocate allocates, punches and zeroes.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, err := f.handles.file(in.Fh)
	if err != nil {
		return status(err)
	}
	f.changing(h.n, h.fd)
	defer f.changed(h.n, h.fd)
	defer f.dropStale(h.n)
	return status(h.file.Allocate(in.Mode, int64(in.Offset), int64(in.Length), caller(&in.Caller)))
}

// CopyFileRange copies between files of the mount.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, err := f.handles.file(in.FhIn)
	if err != nil {
		return 0, status(err)
	}
	dst, err := f.handles.file(in.FhOut)
	if err != nil {
		return 0, status(err)
	}
	const most = 1 << 30 // the reply has 32 bits
	f.changing(dst.n, dst.fd)
	defer f.changed(dst.n, dst.fd)
	defer f.dropStale(src.n)
	defer f.dropStale(dst.n)
	n, err := recovery.Copy(dst.file, int64(in.OffOut), src.file, int64(in.OffIn), int64(min(in.Len, most)), caller(&in.Caller))
	if n > 0 {
		return uint32(n), fuse.OK
	}
	return 0, status(err)
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h, err := f.handles.file(in.Fh)
	if err != nil {
		return status(err)
	}
	off, err := h.file.Seek(int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}
