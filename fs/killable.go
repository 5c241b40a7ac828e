package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// The operations of FS that may wait for the backing filesystem, each with what
// it may change and how it is undone: see killed.go.

var _ fuse.RawFileSystem = (*killable)(nil)

// name is what an operation changes that makes, moves or removes names.
func name(dir uint64, name string) changes { return changes{{dir, name}} }

// content is what an operation changes that works on one inode.
func content(id uint64) changes { return changes{{id: id}} }

// forget takes back a lookup that the kernel was never told of.
func (k *killable) forget(out *fuse.EntryOut) {
	if out.NodeId != 0 { // 0: a name that is not there
		k.Forget(out.NodeId, 1)
	}
}

func (k *killable) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return k.serve(in, changes{},
		func() fuse.Status { return k.FS.Lookup(cancel, in, name, out) },
		func() { k.forget(out) })
}

func (k *killable) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return k.serve(&in.InHeader, changes{}, func() fuse.Status { return k.FS.GetAttr(cancel, in, out) }, nil)
}

func (k *killable) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	return k.serve(&in.InHeader, changes{}, func() fuse.Status { return k.FS.Statx(cancel, in, out) }, nil)
}

func (k *killable) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return k.serve(&in.InHeader, content(in.NodeId), func() fuse.Status { return k.FS.SetAttr(cancel, in, out) }, nil)
}

func (k *killable) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, file string, out *fuse.EntryOut) fuse.Status {
	return k.serve(&in.InHeader, name(in.NodeId, file),
		func() fuse.Status { return k.FS.Mknod(cancel, in, file, out) },
		func() { k.forget(out) })
}

func (k *killable) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, file string, out *fuse.EntryOut) fuse.Status {
	return k.serve(&in.InHeader, name(in.NodeId, file),
		func() fuse.Status { return k.FS.Mkdir(cancel, in, file, out) },
		func() { k.forget(out) })
}

func (k *killable) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, file string, out *fuse.EntryOut) fuse.Status {
	return k.serve(in, name(in.NodeId, file),
		func() fuse.Status { return k.FS.Symlink(cancel, in, target, file, out) },
		func() { k.forget(out) })
}

func (k *killable) Link(cancel <-chan struct{}, in *fuse.LinkIn, file string, out *fuse.EntryOut) fuse.Status {
	return k.serve(&in.InHeader, changes{{in.NodeId, file}, {id: in.Oldnodeid}},
		func() fuse.Status { return k.FS.Link(cancel, in, file, out) },
		func() { k.forget(out) })
}

func (k *killable) Unlink(cancel <-chan struct{}, in *fuse.InHeader, file string) fuse.Status {
	return k.serve(in, name(in.NodeId, file), func() fuse.Status { return k.FS.Unlink(cancel, in, file) }, nil)
}

func (k *killable) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, file string) fuse.Status {
	return k.serve(in, name(in.NodeId, file), func() fuse.Status { return k.FS.Rmdir(cancel, in, file) }, nil)
}

func (k *killable) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return k.serve(&in.InHeader, changes{{in.NodeId, from}, {in.Newdir, to}},
		func() fuse.Status { return k.FS.Rename(cancel, in, from, to) }, nil)
}

func (k *killable) Readlink(cancel <-chan struct{}, in *fuse.InHeader) (target []byte, st fuse.Status) {
	st = k.serve(in, changes{}, func() (st fuse.Status) {
		target, st = k.FS.Readlink(cancel, in)
		return st
	}, nil)
	return target, st
}

func (k *killable) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (size uint32, st fuse.Status) {
	st = k.serve(in, changes{}, func() (st fuse.Status) {
		size, st = k.FS.GetXAttr(cancel, in, attr, dest)
		return st
	}, nil)
	return size, st
}

func (k *killable) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (size uint32, st fuse.Status) {
	st = k.serve(in, changes{}, func() (st fuse.Status) {
		size, st = k.FS.ListXAttr(cancel, in, dest)
		return st
	}, nil)
	return size, st
}

func (k *killable) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return k.serve(&in.InHeader, content(in.NodeId), func() fuse.Status { return k.FS.SetXAttr(cancel, in, attr, data) }, nil)
}

func (k *killable) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	return k.serve(in, content(in.NodeId), func() fuse.Status { return k.FS.RemoveXAttr(cancel, in, attr) }, nil)
}

func (k *killable) Create(cancel <-chan struct{}, in *fuse.CreateIn, file string, out *fuse.CreateOut) fuse.Status {
	return k.serve(&in.InHeader, name(in.NodeId, file),
		func() fuse.Status { return k.FS.Create(cancel, in, file, out) },
		func() { k.uncreate(cancel, &in.InHeader, out) })
}

func (k *killable) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return k.serve(&in.InHeader, content(in.NodeId),
		func() fuse.Status { return k.FS.Tmpfile(cancel, in, out) },
		func() { k.uncreate(cancel, &in.InHeader, out) })
}

func (k *killable) uncreate(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.CreateOut) {
	k.unopen(cancel, in, &out.OpenOut)
	k.forget(&out.EntryOut)
}

// unopen releases an open file that the kernel was never told of.
func (k *killable) unopen(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.OpenOut) {
	k.Release(cancel, &fuse.ReleaseIn{InHeader: *in, Fh: out.Fh})
}

func (k *killable) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return k.serve(&in.InHeader, changes{},
		func() fuse.Status { return k.FS.Open(cancel, in, out) },
		func() { k.unopen(cancel, &in.InHeader, out) })
}

func (k *killable) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return k.serve(&in.InHeader, changes{},
		func() fuse.Status { return k.FS.OpenDir(cancel, in, out) },
		func() { k.ReleaseDir(&fuse.ReleaseIn{InHeader: in.InHeader, Fh: out.Fh}) })
}

func (k *killable) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return k.serve(&in.InHeader, changes{}, func() fuse.Status { return k.FS.ReadDir(cancel, in, out) }, nil)
}

func (k *killable) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return k.serve(&in.InHeader, changes{},
		func() fuse.Status { return k.FS.ReadDirPlus(cancel, in, out) },
		func() {
			_, entries, _ := fuse.ParseDirLookupEntries(out.Bytes()) // we made them
			for i := range entries {
				k.forget(&entries[i])
			}
		})
}

func (k *killable) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return k.serve(&in.InHeader, changes{}, func() fuse.Status { return k.FS.FsyncDir(cancel, in) }, nil)
}

func (k *killable) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (result fuse.ReadResult, st fuse.Status) {
	st = k.serve(&in.InHeader, changes{}, func() (st fuse.Status) {
		result, st = k.FS.Read(cancel, in, buf)
		return st
	}, nil)
	return result, st
}

func (k *killable) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (n uint32, st fuse.Status) {
	st = k.serve(&in.InHeader, content(in.NodeId), func() (st fuse.Status) {
		n, st = k.FS.Write(cancel, in, data)
		return st
	}, nil)
	return n, st
}

func (k *killable) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return k.serve(&in.InHeader, changes{}, func() fuse.Status { return k.FS.Fsync(cancel, in) }, nil)
}

func (k *killable) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return k.serve(&in.InHeader, content(in.NodeId), func() fuse.Status { return k.FS.Fallocate(cancel, in) }, nil)
}

func (k *killable) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (n uint32, st fuse.Status) {
	st = k.serve(&in.InHeader, content(in.NodeIdOut), func() (st fuse.Status) {
		n, st = k.FS.CopyFileRange(cancel, in)
		return st
	}, nil)
	return n, st
}

func (k *killable) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	return k.serve(&in.InHeader, changes{}, func() fuse.Status { return k.FS.Lseek(cancel, in, out) }, nil)
}

func (k *killable) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return k.serve(in, changes{}, func() fuse.Status { return k.FS.StatFs(cancel, in, out) }, nil)
}

func (k *killable) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, arg []byte, out *fuse.IoctlOut, reply []byte) fuse.Status {
	return k.serve(&in.InHeader, content(in.NodeId), func() fuse.Status { return k.FS.Ioctl(cancel, in, arg, out, reply) }, nil)
}
