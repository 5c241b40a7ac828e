//go:build failpoints

package recovery

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/mendfs/mendfs/recovery/journal"
)

// powerDisk is a disk for the journal that loses what was not synced. Each
// change is an instant of its world.
type powerDisk struct {
	instant func(name string, change func())

	mu    sync.Mutex // guards all below
	names map[string]*powerInode
}

// powerInode is what processes see, how much of it is durable, and what was
// written since. What lies behind the bytes of data, up to size, is zero.
type powerInode struct {
	size, durableSize int64
	data, durable     []byte
	dirty             []patch
}

// patch is one write; its bytes are never changed.
type patch struct {
	off  int64
	data []byte
}

func newPowerDisk() *powerDisk { return &powerDisk{names: map[string]*powerInode{}} }

// clone is the disk after the daemon's death.
func (d *powerDisk) clone() *powerDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := newPowerDisk()
	for name, i := range d.names {
		n.names[name] = &powerInode{i.size, i.durableSize, bytes.Clone(i.data), bytes.Clone(i.durable), slices.Clone(i.dirty)}
	}
	return n
}

// cut is the disk after a power cut: of what was not synced, any sectors may
// have reached it.
func (d *powerDisk) cut(random *rand.Rand) *powerDisk {
	const sector = 512
	n := d.clone()
	for _, i := range n.names {
		for _, w := range i.dirty {
			for s := 0; s < len(w.data); s += sector {
				if random.IntN(2) == 0 {
					i.durable = lay(i.durable, w.data[s:min(s+sector, len(w.data))], w.off+int64(s))
				}
			}
		}
		if random.IntN(2) == 0 {
			i.durableSize = i.size
		}
		i.size = max(i.durableSize, int64(len(i.durable)))
		i.durableSize, i.data, i.dirty = i.size, bytes.Clone(i.durable), nil
	}
	return n
}

// lay puts data at off, and makes room for it.
func lay(to, data []byte, off int64) []byte {
	if more := off + int64(len(data)) - int64(len(to)); more > 0 {
		to = append(to, make([]byte, more)...)
	}
	copy(to[off:], data)
	return to
}

// do is one change of the disk.
func (d *powerDisk) do(name string, change func()) {
	d.instant(name, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		change()
	})
}

func (d *powerDisk) Open(path string, _ bool) (journal.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.names[path]
	if i == nil {
		return nil, fs.ErrNotExist
	}
	return &powerDiskFile{d, i}, nil
}

func (d *powerDisk) Create(path string) (journal.File, error) {
	i := &powerInode{}
	d.do("journal create", func() { d.names[path] = i })
	return &powerDiskFile{d, i}, nil
}

func (d *powerDisk) Rename(from, to string) error {
	d.do("journal rename", func() {
		d.names[to] = d.names[from]
		delete(d.names, from)
	})
	return nil
}

func (d *powerDisk) Link(path, second string) error {
	d.do("journal link", func() { d.names[second] = d.names[path] })
	return nil
}

func (d *powerDisk) Remove(path string) error {
	d.do("journal remove", func() { delete(d.names, path) })
	return nil
}

type powerDiskFile struct {
	disk *powerDisk
	i    *powerInode
}

func (f *powerDiskFile) ReadAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	n := int(max(0, min(int64(len(p)), f.i.size-off)))
	clear(p[:n])
	if off < int64(len(f.i.data)) {
		copy(p[:n], f.i.data[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *powerDiskFile) WriteAt(p []byte, off int64) (int, error) {
	f.disk.do("journal write", func() {
		f.i.size = max(f.i.size, off+int64(len(p)))
		if off >= int64(len(f.i.data)) && isZero(p) {
			return // preallocation
		}
		f.i.data = lay(f.i.data, p, off)
		f.i.dirty = append(f.i.dirty, patch{off, bytes.Clone(p)})
	})
	return len(p), nil
}

func (f *powerDiskFile) Allocate(off, n int64) error {
	f.disk.do("journal allocate", func() { f.i.size = max(f.i.size, off+n) })
	return nil
}

// Datasync makes durable what was there when it was called.
func (f *powerDiskFile) Datasync() error {
	var durable []byte
	var size int64
	var upto int
	f.disk.do("journal sync begins", func() {
		durable, size, upto = bytes.Clone(f.i.data), f.i.size, len(f.i.dirty)
	})
	f.disk.do("journal sync", func() { f.i.durable, f.i.durableSize, f.i.dirty = durable, size, f.i.dirty[upto:] })
	return nil
}

func (f *powerDiskFile) Size() (int64, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return f.i.size, nil
}

func (f *powerDiskFile) Close() error { return nil }
