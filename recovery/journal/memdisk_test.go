package journal

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
)

// memDisk is a disk that can lose power, forget what was not synced, and fail.
type memDisk struct {
	mu    sync.Mutex
	names map[string]*memInode
	rng   *rand.Rand
	ops   int // changes tried
	cutAt int // the operation with this number, and all later ones, fail half done; 0: never
	syncs int
	fail  func(op string) error // nil, or asked before every operation
	// onSync, if set, is called by every fdatasync, before anything is durable.
	onSync func()
}

// memInode is a file: what processes see, and what the disk has.
type memInode struct {
	cache, durable []byte
	dirty          []memWrite
}

type memWrite struct {
	off  int64
	data []byte
}

const sector = 512

var errCut = errors.New("the power is gone")

func newMemDisk(seed uint64) *memDisk {
	return &memDisk{names: map[string]*memInode{}, rng: rand.New(rand.NewPCG(seed, 1))}
}

// step counts an operation and says whether it fails, and if it is the one
// during which the power goes.
func (d *memDisk) step(op string) (cut bool, err error) {
	d.ops++
	if d.cutAt > 0 && d.ops >= d.cutAt {
		return d.ops == d.cutAt, errCut
	}
	if d.fail != nil {
		return false, d.fail(op)
	}
	return false, nil
}

// restart is the disk as the next process finds it after a kill -9.
func (d *memDisk) restart() *memDisk {
	d.mu.Lock() // the process that is dead may have a flusher
	defer d.mu.Unlock()
	return d.clone()
}

func (d *memDisk) clone() *memDisk {
	n := newMemDisk(d.rng.Uint64())
	for name, i := range d.names {
		n.names[name] = &memInode{bytes.Clone(i.cache), bytes.Clone(i.durable), append([]memWrite(nil), i.dirty...)}
	}
	return n
}

// powerCut is the disk after a power cut: of what was not synced, any sectors
// may have reached it.
func (d *memDisk) powerCut() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.clone()
	for _, i := range n.names {
		for _, w := range i.dirty {
			for s := int64(0); s < int64(len(w.data)); s += sector {
				if d.rng.IntN(2) == 0 {
					part := w.data[s:min(s+sector, int64(len(w.data)))]
					i.durable = writeAt(i.durable, part, w.off+s)
				}
			}
		}
		i.dirty, i.cache = nil, bytes.Clone(i.durable)
	}
	return n
}

func writeAt(to, data []byte, off int64) []byte {
	if more := off + int64(len(data)) - int64(len(to)); more > 0 {
		to = append(to, make([]byte, more)...)
	}
	copy(to[off:], data)
	return to
}

func (d *memDisk) Open(path string, write bool) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.names[path]
	if i == nil {
		return nil, fs.ErrNotExist
	}
	return &memFile{d, i}, nil
}

func (d *memDisk) Create(path string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.step("create"); err != nil {
		return nil, err
	}
	d.names[path] = &memInode{}
	return &memFile{d, d.names[path]}, nil
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.step("rename")
	if err == nil || d.rng.IntN(2) == 0 { // one that failed may be in force
		d.names[to] = d.names[from]
		delete(d.names, from)
	}
	return err
}

func (d *memDisk) Link(path, second string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.step("link")
	if err == nil {
		d.names[second] = d.names[path]
	}
	return err
}

func (d *memDisk) Remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.step("remove"); err != nil {
		return err
	}
	delete(d.names, path)
	return nil
}

type memFile struct {
	d *memDisk
	i *memInode
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.i.cache)) {
		return 0, io.EOF
	}
	n := copy(p, f.i.cache[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	cut, err := f.d.step("write")
	if err != nil && !cut {
		return 0, err
	}
	if cut && len(p) > 0 {
		p = p[:f.d.rng.IntN(len(p))]
	}
	f.i.cache = writeAt(f.i.cache, p, off)
	f.i.dirty = append(f.i.dirty, memWrite{off, bytes.Clone(p)})
	return len(p), err
}

func (f *memFile) Allocate(off, n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if _, err := f.d.step("allocate"); err != nil {
		return err
	}
	// Of a size, as of data, any may be there after a power cut: zeros.
	f.i.cache = writeAt(f.i.cache, nil, off+n)
	f.i.dirty = append(f.i.dirty, memWrite{off + n, nil})
	return nil
}

// Datasync, when it fails, forgets what it could not write, as Linux does.
func (f *memFile) Datasync() error {
	if f.d.onSync != nil {
		f.d.onSync()
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.syncs++
	_, err := f.d.step("sync")
	if err == nil {
		for _, w := range f.i.dirty {
			f.i.durable = writeAt(f.i.durable, w.data, w.off)
		}
	}
	if err == nil || !errors.Is(err, errCut) {
		f.i.dirty = nil
	}
	return err
}

func (f *memFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.i.cache)), nil
}

func (f *memFile) Close() error { return nil }
