package mediatest

import (
	"maps"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// pmemFile is an open file of Pmem.
type pmemFile struct {
	m  *Pmem
	fd int
}

var _ media.File = (*pmemFile)(nil)

func (f *pmemFile) Fd() int { return f.fd }

// with runs fn on the inode.
func (f *pmemFile) with(fn func(*pmemInode) error) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	i, err := f.m.of(f.fd)
	if err != nil {
		return err
	}
	return fn(i)
}

func (f *pmemFile) Pread(p []byte, off int64) (n int, err error) {
	err = f.with(func(i *pmemInode) error {
		n = int(max(0, min(int64(len(p)), i.size-off)))
		i.read(p[:n], off)
		return nil
	})
	return n, err
}

func (f *pmemFile) Pwrite(p []byte, off int64, _ uint32) (int, error) {
	r := ranges.Range{Off: off, Len: int64(len(p))}
	return len(p), f.with(func(i *pmemInode) error {
		var holes []int64
		for page := ranges.Page(off); page.Off < r.End(); page = page.Shift(ranges.PageSize) {
			if i.pages[page.Off] == nil {
				holes = append(holes, page.Off)
			}
		}
		if len(holes) > 0 || r.End() > i.size {
			i.change()
			i.pages = maps.Clone(i.pages)
			if r.End() > i.size {
				i.zeroBehind(i.size) // a cut may have left something there
			}
			for _, at := range holes {
				f.m.blocks++
				i.pages[at] = &block{id: f.m.blocks, contents: [][]byte{make([]byte, ranges.PageSize)}}
			}
			i.size = max(i.size, r.End())
		}
		i.write(p, off)
		i.touch()
		return nil
	})
}

func (f *pmemFile) Truncate(size int64) error {
	return f.with(func(i *pmemInode) error {
		i.change()
		i.pages = maps.Clone(i.pages)
		i.zeroBehind(min(i.size, size))
		i.size = size
		i.touch()
		return nil
	})
}

// Allocate knows punch hole, zero range and preallocation; the last two leave
// holes, as reading and SEEK_DATA show unwritten blocks.
func (f *pmemFile) Allocate(mode uint32, off, length int64, _ uint32) error {
	r := ranges.Range{Off: off, Len: length}
	return f.with(func(i *pmemInode) error {
		i.change()
		i.pages = maps.Clone(i.pages)
		if mode&unix.FALLOC_FL_KEEP_SIZE == 0 && r.End() > i.size {
			i.zeroBehind(i.size)
			i.size = r.End()
		}
		if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
			return nil
		}
		for page := ranges.Page(off); page.Off < r.End(); page = page.Shift(ranges.PageSize) {
			part := page.Intersect(r)
			switch {
			case i.pages[page.Off] == nil:
			case part == page:
				delete(i.pages, page.Off)
			default:
				i.write(make([]byte, part.Len), part.Off)
			}
		}
		i.touch()
		return nil
	})
}

func (f *pmemFile) Sync(full bool) error {
	return f.with(func(i *pmemInode) error {
		i.settle()
		if full {
			i.old.mtime, i.old.ctime = i.mtime, i.ctime
		}
		return nil
	})
}

func (f *pmemFile) Stat() (st media.Stat, err error) {
	err = f.with(func(i *pmemInode) error {
		var real unix.Stat_t
		if err := unix.Fstat(f.fd, &real); err != nil {
			return err
		}
		st = media.Stat{Dev: real.Dev, Ino: real.Ino, Size: i.size, Mtime: i.mtime, Ctime: i.ctime}
		return nil
	})
	return st, err
}

func (f *pmemFile) SetMtime(ns int64) error {
	return f.with(func(i *pmemInode) error {
		i.touch()
		i.mtime = ns
		return nil
	})
}

func (f *pmemFile) IsHole(r ranges.Range) (hole bool, err error) {
	err = f.with(func(i *pmemInode) error {
		hole = true
		for page := ranges.Page(r.Off); page.Off < min(r.End(), i.size); page = page.Shift(ranges.PageSize) {
			hole = hole && i.pages[page.Off] == nil
		}
		return nil
	})
	return hole, err
}

// Salvage is an ordinary read: nothing here is bad.
func (f *pmemFile) Salvage(buf []byte, off int64) ([]ranges.Range, int64) {
	if _, err := f.Pread(buf, off); err != nil {
		return []ranges.Range{{Off: off, Len: int64(len(buf))}}, ranges.PageSize
	}
	return nil, ranges.LineSize
}

func (f *pmemFile) Corroborate(ranges.Range) media.Verdict { return media.Unknown }

// Device is nil: the medium simulates what power cuts do, not the kernel's list.
func (f *pmemFile) Device() media.Device { return nil }

func (f *pmemFile) Control(*ranges.Set) error { return nil }
