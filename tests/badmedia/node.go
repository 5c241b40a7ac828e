package main

import (
	"context"
	"path/filepath"
	"slices"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// node is a file or directory on bad media.
type node struct {
	*gofs.LoopbackNode
	media *media
}

var (
	_ gofs.NodeWrapChilder     = (*node)(nil)
	_ gofs.NodeOpener          = (*node)(nil)
	_ gofs.NodeCreater         = (*node)(nil)
	_ gofs.NodeSetattrer       = (*node)(nil)
	_ gofs.NodeCopyFileRanger  = (*node)(nil)
	_ gofs.FileReader          = (*handle)(nil)
	_ gofs.FileWriter          = (*handle)(nil)
	_ gofs.FileFsyncer         = (*handle)(nil)
	_ gofs.FileAllocater       = (*handle)(nil)
	_ gofs.FilePassthroughFder = (*handle)(nil)
)

func (n *node) WrapChild(_ context.Context, ops gofs.InodeEmbedder) gofs.InodeEmbedder {
	return &node{ops.(*gofs.LoopbackNode), n.media}
}

func (n *node) Open(ctx context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	// O_DIRECT is for the kernel above: we want no alignment.
	fh, _, errno := n.LoopbackNode.Open(ctx, flags&^unix.O_DIRECT)
	if errno != 0 {
		return nil, 0, errno
	}
	return n.handle(fh, n.StableAttr().Ino), n.media.openFlags(), 0
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	child, fh, _, errno := n.LoopbackNode.Create(ctx, name, flags&^unix.O_DIRECT, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return child, n.handle(fh, child.StableAttr().Ino), n.media.openFlags(), 0
}

func (n *node) handle(fh gofs.FileHandle, ino uint64) *handle {
	return &handle{fh.(*gofs.LoopbackFile), n.media, ino}
}

func (m *media) openFlags() uint32 {
	if m.cached || m.short {
		return 0
	}
	return fuse.FOPEN_DIRECT_IO
}

// Setattr is a truncate, perhaps.
func (n *node) Setattr(ctx context.Context, f gofs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	size, truncate := in.GetSize()
	if h, ok := f.(*handle); ok {
		f = h.LoopbackFile
	}
	if !truncate {
		return n.LoopbackNode.Setattr(ctx, f, in, out)
	}
	var before fuse.AttrOut
	if errno := n.Getattr(ctx, f, &before); errno != 0 {
		return errno
	}
	m, ino := n.media, n.StableAttr().Ino
	m.wait(ino)
	m.mu.Lock()
	defer m.mu.Unlock()
	from := min(int64(size), int64(before.Size))
	end := from
	if from%ranges.PageSize != 0 { // the rest of this page is zeroed
		end = ranges.Page(from).End()
	}
	if errno := m.writable(ino, ranges.Between(from, end)); errno != 0 {
		return errno
	}
	if errno := n.keepBefore(f, ranges.Between(from, int64(max(size, before.Size)))); errno != 0 {
		return errno
	}
	if errno := n.LoopbackNode.Setattr(ctx, f, in, out); errno != 0 {
		return errno
	}
	m.clear(ino, ranges.Between(end, 1<<62))
	return 0
}

// keepBefore is volatile.before for a truncate. The caller holds the media's mu.
func (n *node) keepBefore(f gofs.FileHandle, r ranges.Range) syscall.Errno {
	if n.media.volatile == nil {
		return 0
	}
	open, _ := f.(*gofs.LoopbackFile)
	fd, done, err := fdOf(open, filepath.Join(n.RootData.Path, n.Path(n.Root())))
	if err != nil {
		return gofs.ToErrno(err)
	}
	defer done()
	return gofs.ToErrno(n.media.volatile.before(n.StableAttr().Ino, fd, r, ranges.Of()))
}

// CopyFileRange is left to the kernel, which reads and writes.
func (n *node) CopyFileRange(context.Context, gofs.FileHandle, uint64, *gofs.Inode, gofs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, unix.ENOSYS
}

// handle is an open file on bad media.
type handle struct {
	*gofs.LoopbackFile
	media *media
	ino   uint64
}

func (h *handle) Read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	h.media.reads.Add(1)
	h.media.wait(h.ino)
	h.media.mu.RLock()
	defer h.media.mu.RUnlock()
	n, errno := h.media.readable(h.ino, ranges.Range{Off: off, Len: int64(len(buf))})
	if errno != 0 {
		return nil, errno
	}
	result, errno := h.LoopbackFile.Read(ctx, buf[:n], off)
	if errno != 0 {
		return nil, errno
	}
	data, status := result.Bytes(buf[:n]) // here, while the lock is held
	return fuse.ReadResultData(data), syscall.Errno(status)
}

func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	h.media.wait(h.ino)
	h.media.mu.Lock()
	defer h.media.mu.Unlock()
	r := ranges.Range{Off: off, Len: int64(len(data))}
	if errno := h.media.writable(h.ino, r); errno != 0 {
		return 0, errno
	}
	if errno := h.keepBefore(r); errno != 0 {
		return 0, errno
	}
	n, errno := h.LoopbackFile.Write(ctx, data, off)
	if errno == 0 {
		h.media.clear(h.ino, ranges.Range{Off: off, Len: int64(n)})
	}
	return n, errno
}

func (h *handle) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	h.media.wait(h.ino)
	h.media.mu.Lock()
	defer h.media.mu.Unlock()
	var zeroed ranges.Range
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		zeroed = ranges.Range{Off: int64(off), Len: int64(size)}
	}
	if errno := h.media.writable(h.ino, zeroed); errno != 0 {
		return errno
	}
	if errno := h.keepBefore(ranges.Range{Off: int64(off), Len: int64(size)}); errno != 0 {
		return errno
	}
	errno := h.LoopbackFile.Allocate(ctx, off, size, mode)
	if errno == 0 {
		h.media.clear(h.ino, zeroed)
	}
	return errno
}

func (h *handle) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	h.media.wait(h.ino)
	h.media.mu.Lock()
	defer h.media.mu.Unlock()
	if h.media.outage {
		return unix.EIO
	}
	h.media.volatile.synced(h.ino)
	return h.LoopbackFile.Fsync(ctx, flags)
}

// keepBefore is volatile.before. The caller holds the media's mu.
func (h *handle) keepBefore(r ranges.Range) syscall.Errno {
	fd, _ := h.LoopbackFile.PassthroughFd()
	bad := ranges.Of(slices.Collect(h.media.of(h.ino).Within(wholePages(r)))...)
	return gofs.ToErrno(h.media.volatile.before(h.ino, fd, r, bad))
}

// PassthroughFd is none: the kernel must not go past us.
func (h *handle) PassthroughFd() (int, bool) { return -1, false }
