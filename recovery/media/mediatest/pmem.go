package mediatest

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Pmem is a medium in memory that a power cut treats as it may treat a file on
// DAX. Real files lend it nothing but their identity: content, size, holes and
// times are its own. It knows nothing of poison; who simulates that above it says
// where poison was cleared (Cleared).
//
// What Sync has not made durable is, after a Cut:
//   - of sizes and blocks: as after some earlier change, all before it and
//     none behind it, since filesystems keep these in a log;
//   - of data: in each line of 64 bytes as after any of the writes of the line,
//     or as before, whatever other lines are;
//   - where poison was cleared: that, or garbage, which reads without error;
//   - of times: old or new.
type Pmem struct {
	mu     sync.Mutex // guards all below
	files  map[inode]*pmemInode
	blocks uint64 // given out
}

// pmemInode is a file.
type pmemInode struct {
	layout
	mtime, ctime int64
	was          []layout // since the last Sync, oldest first; never the one in force
	old          struct{ mtime, ctime int64 }
}

// layout is a size and which blocks the pages are in; no block is a hole.
type layout struct {
	size  int64
	pages map[int64]*block
}

// block is a page of memory. What is in contents is never changed.
type block struct {
	id       uint64
	contents [][]byte   // the durable one, and after each write since
	cleared  ranges.Set // of the block: lines whose poison was cleared since
}

var _ media.Medium = (*Pmem)(nil)

// NewPmem is empty.
func NewPmem() *Pmem { return &Pmem{files: map[inode]*pmemInode{}} }

// Open wraps fd.
func (m *Pmem) Open(fd int) media.File { return &pmemFile{m, fd} }

// Source is "kernel": nobody shall be able to tell.
func (m *Pmem) Source() string { return "kernel" }

// KernelCopies is false: the kernel does not know the content.
func (m *Pmem) KernelCopies() bool { return false }

// AnyListed is false, as Device is nil.
func (m *Pmem) AnyListed() bool { return false }

// LookListed is false, as AnyListed.
func (m *Pmem) LookListed() bool { return false }

// MustClear is false, as AnyListed.
func (m *Pmem) MustClear() bool { return false }

// Put gives the file open at fd a durable content.
func (m *Pmem) Put(fd int, data []byte) error {
	f := &pmemFile{m, fd}
	if _, err := f.Pwrite(data, 0, 0); err != nil {
		return err
	}
	return f.Sync(true)
}

// Content is what the file open at fd holds.
func (m *Pmem) Content(fd int) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.of(fd)
	if err != nil {
		return nil, err
	}
	all := make([]byte, i.size)
	i.read(all, 0)
	return all, nil
}

// Blocks is the ID of the block of each page of the file open at fd; holes have
// none. A page that was freed and allocated again has another block.
func (m *Pmem) Blocks(fd int) (map[int64]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.of(fd)
	if err != nil {
		return nil, err
	}
	ids := map[int64]uint64{}
	for off, b := range i.pages {
		ids[off] = b.id
	}
	return ids, nil
}

// Cleared says that poison was cleared just now in a range of the file open at fd.
func (m *Pmem) Cleared(fd int, r ranges.Range) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.of(fd)
	if err != nil {
		return err
	}
	for page := ranges.Page(r.Off); page.Off < r.End(); page = page.Shift(ranges.PageSize) {
		if b := i.pages[page.Off]; b != nil {
			b.cleared.Add(page.Intersect(r).Shift(-page.Off).Widen(ranges.LineSize))
		}
	}
	return nil
}

// Clone is a copy, which shares nothing that changes.
func (m *Pmem) Clone() *Pmem {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &Pmem{files: map[inode]*pmemInode{}, blocks: m.blocks}
	for key, i := range m.files {
		copies := map[*block]*block{}
		n := *i
		n.layout = i.layout.clone(copies)
		n.was = nil
		for _, l := range i.was {
			n.was = append(n.was, l.clone(copies))
		}
		out.files[key] = &n
	}
	return out
}

func (l layout) clone(copies map[*block]*block) layout {
	pages := map[int64]*block{}
	for off, b := range l.pages {
		if copies[b] == nil {
			copies[b] = &block{b.id, slices.Clone(b.contents), *ranges.Of(b.cleared.Slice()...)}
		}
		pages[off] = copies[b]
	}
	return layout{l.size, pages}
}

// Cut is the medium after a power cut.
func (m *Pmem) Cut(random *rand.Rand) *Pmem {
	out := m.Clone()
	keys := slices.SortedFunc(maps.Keys(out.files), func(a, b inode) int { return int(int64(a.ino) - int64(b.ino)) })
	for _, key := range keys {
		out.files[key].cut(random)
	}
	return out
}

func (i *pmemInode) cut(random *rand.Rand) {
	if n := random.IntN(len(i.was) + 1); n < len(i.was) {
		i.layout = i.was[n]
	}
	if random.IntN(2) == 0 {
		i.mtime, i.ctime = i.old.mtime, i.old.ctime
	}
	for _, off := range slices.Sorted(maps.Keys(i.pages)) {
		i.pages[off].cut(random)
	}
	i.zeroBehind(i.size)
	i.settle()
}

// cut leaves of the contents what a power cut may leave.
func (b *block) cut(random *rand.Rand) {
	last := len(b.contents) - 1
	if last == 0 && b.cleared.Empty() {
		return
	}
	how := random.IntN(4) // 0: all old, or garbage; 1: all new; otherwise a mix
	page := make([]byte, ranges.PageSize)
	for off := int64(0); off < ranges.PageSize; off += ranges.LineSize {
		line := ranges.Range{Off: off, Len: ranges.LineSize}
		version := map[int]int{0: 0, 1: last}[how]
		if how > 1 {
			version = random.IntN(last + 1)
		}
		copy(page[off:], b.contents[version][off:line.End()])
		if b.cleared.Overlaps(line) && version < last {
			for n := range line.Len {
				page[off+n] = byte(Garbage + random.IntN(256-Garbage))
			}
		}
	}
	b.contents = append(b.contents, page)
}

// settle makes what is there durable.
func (i *pmemInode) settle() {
	i.was = nil
	for _, b := range i.pages {
		b.contents, b.cleared = b.contents[len(b.contents)-1:], ranges.Set{}
	}
}

// of is the file open at fd. The caller holds mu.
func (m *Pmem) of(fd int) (*pmemInode, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	key := inode{st.Dev, st.Ino}
	if m.files[key] == nil {
		m.files[key] = &pmemInode{layout: layout{pages: map[int64]*block{}}}
	}
	return m.files[key], nil
}

// change is called in front of a change of size or blocks.
func (i *pmemInode) change() {
	i.was = append(i.was, layout{i.size, maps.Clone(i.pages)})
}

func (i *pmemInode) touch() {
	i.mtime = time.Now().UnixNano()
	i.ctime = i.mtime
}

func (i *pmemInode) read(p []byte, off int64) {
	clear(p)
	r := ranges.Range{Off: off, Len: int64(len(p))}
	for at, b := range i.pages {
		if part := ranges.Page(at).Intersect(r); !part.Empty() {
			copy(p[part.Off-off:part.End()-off], b.contents[len(b.contents)-1][part.Off-at:])
		}
	}
}

// write is a write to blocks that are there.
func (i *pmemInode) write(p []byte, off int64) {
	r := ranges.Range{Off: off, Len: int64(len(p))}
	for page := ranges.Page(off); page.Off < r.End(); page = page.Shift(ranges.PageSize) {
		b, part := i.pages[page.Off], page.Intersect(r)
		content := slices.Clone(b.contents[len(b.contents)-1])
		copy(content[part.Off-page.Off:], p[part.Off-off:part.End()-off])
		b.contents = append(b.contents, content)
	}
}

// zeroBehind zeros the rest of the page that end lies in, and frees what
// follows.
func (i *pmemInode) zeroBehind(end int64) {
	for at := range i.pages {
		if at >= end {
			delete(i.pages, at)
		}
	}
	page := ranges.Page(end)
	if b := i.pages[page.Off]; b != nil && end > page.Off {
		i.write(make([]byte, page.End()-end), end)
	}
}
