package sim

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const page = ranges.PageSize

// bench is one file on a simulated medium.
type bench struct {
	t     *testing.T
	dir   string
	store string
	m     *Medium
	os    *os.File
	f     media.File
	id    fileid.ID
	data  []byte // what was put into the file at first
}

// newBench is a file of size random bytes in the given profile.
func newBench(t *testing.T, profile string, size int) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), store: filepath.Join(t.TempDir(), "poison.jsonl")}
	b.data = make([]byte, size)
	random := rand.New(rand.NewPCG(1, uint64(size)))
	for i := range b.data {
		b.data[i] = byte(random.Uint32()) | 1 // never zero
	}
	path := filepath.Join(b.dir, "file")
	if err := os.WriteFile(path, b.data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(profile)
	return b
}

// start opens medium and file, as a new process would.
func (b *bench) start(profile string) {
	b.t.Helper()
	root, err := unix.Open(b.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { unix.Close(root) })
	if b.m, err = New(Options{Profile: profile, Store: b.store, Root: root, Below: media.New(root)}); err != nil {
		b.t.Fatal(err)
	}
	if b.os, err = os.OpenFile(filepath.Join(b.dir, "file"), os.O_RDWR, 0); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.os.Close() })
	if b.id, err = fileid.Of(int(b.os.Fd())); err != nil {
		b.t.Fatal(err)
	}
	b.f = b.m.Open(int(b.os.Fd()))
}

// restart drops the medium without closing it, as kill -9 does.
func (b *bench) restart(profile string) {
	b.t.Helper()
	b.start(profile)
}

func (b *bench) inject(off, n int64, latent bool) Injection {
	b.t.Helper()
	inj, err := b.m.Inject(b.id, "file", int(b.os.Fd()), ranges.Range{Off: off, Len: n}, latent)
	if err != nil {
		b.t.Fatal(err)
	}
	return inj
}

// poisoned are the bytes that are left poisoned.
func (b *bench) poisoned() []ranges.Range {
	b.t.Helper()
	var out ranges.Set
	for _, inj := range b.m.List() {
		for _, r := range inj.Remaining {
			out.Add(r)
		}
	}
	return out.Slice()
}

func (b *bench) wantRead(off int64, n int, want int, wantErr error) {
	b.t.Helper()
	buf := make([]byte, n)
	got, err := b.f.Pread(buf, off)
	if got != want || !errors.Is(err, wantErr) {
		b.t.Fatalf("pread of [%d +%d) = %d, %v; want %d, %v", off, n, got, err, want, wantErr)
	}
	if below := b.below(off, got); !bytes.Equal(buf[:got], below) {
		b.t.Fatalf("pread of [%d +%d): wrong bytes", off, n)
	}
}

// below are the stored bytes, poison or not.
func (b *bench) below(off int64, n int) []byte {
	b.t.Helper()
	buf := make([]byte, n)
	if n, err := b.os.ReadAt(buf, off); n < len(buf) {
		b.t.Fatalf("reading below: %d, %v", n, err)
	}
	return buf
}

func fill(n int64) []byte { return bytes.Repeat([]byte{'w'}, int(n)) }

// A step is one system call on a file of 3 pages and the expected end. The
// bad sector is sector 3 of page 1, unless said otherwise (facts: lab, "Core"
// and "The rest").
type step struct {
	name  string
	bad   int64 // offset of the poison; 0: sector 3 of page 1
	do    func(f media.File) (int, error)
	n     int
	err   error
	stays bool // the poison is still there afterwards
}

func write(off, n int64) func(media.File) (int, error) {
	return func(f media.File) (int, error) { return f.Pwrite(fill(n), off, 0) }
}

func read(off, n int64) func(media.File) (int, error) {
	return func(f media.File) (int, error) { return f.Pread(make([]byte, n), off) }
}

func truncate(size int64) func(media.File) (int, error) {
	return func(f media.File) (int, error) { return 0, f.Truncate(size) }
}

func allocate(mode uint32, off, n int64) func(media.File) (int, error) {
	return func(f media.File) (int, error) { return 0, f.Allocate(mode, off, n, 0) }
}

const (
	punch    = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zero     = unix.FALLOC_FL_ZERO_RANGE
	keepSize = unix.FALLOC_FL_KEEP_SIZE
	collapse = unix.FALLOC_FL_COLLAPSE_RANGE
)

func runSteps(t *testing.T, profile string, size int, steps []step) {
	for _, c := range steps {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, profile, size)
			bad := c.bad
			if bad == 0 {
				bad = page + 3*ranges.SectorSize
			}
			b.inject(bad, min(ranges.SectorSize, int64(size)-bad), false)
			n, err := c.do(b.f)
			if n != c.n || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("= %d, %v; want %d, %v", n, err, c.n, c.err)
			}
			if left := b.poisoned(); (len(left) > 0) != c.stays {
				t.Fatalf("poison left: %v; want some: %v", left, c.stays)
			}
			if c.stays {
				if v := b.f.Corroborate(ranges.Page(bad)); v != media.Listed {
					t.Fatalf("the list says %v; want listed", v)
				}
			}
		})
	}
}

func TestKnownPoisonDAX(t *testing.T) {
	runSteps(t, DAX, 3*page, []step{
		{name: "core 2: pread 4096 of the bad page", do: read(page, page), err: unix.EIO, stays: true},
		{name: "core 2: pread 512 of a good sector of it", do: read(page, 512), err: unix.EIO, stays: true},
		{name: "core 2: pread 1 of a good sector of it", do: read(2*page-1, 1), err: unix.EIO, stays: true},
		{name: "core 2: page before", do: read(0, page), n: page, stays: true},
		{name: "core 2: page after", do: read(2*page, page), n: page, stays: true},
		{name: "core: large read has no good prefix in the extent", do: read(0, 3*page), err: unix.EIO, stays: true},
		{name: "core 4: pwrite 4096 aligned", do: write(page, page), n: page},
		{name: "core 4: pwrite 12288 aligned, bad page in the middle", do: write(0, 3*page), n: 3 * page},
		{name: "core 4: pwrite 512 over the bad sector", do: write(page+1536, 512), err: unix.EFAULT, stays: true},
		{name: "core 4: pwrite 512 over a good sector of the bad page", do: write(page, 512), err: unix.EFAULT, stays: true},
		{name: "core 4: pwrite 4095 from page start", do: write(page, page-1), err: unix.EFAULT, stays: true},
		{name: "core 4: pwrite 4096+512 from page start", do: write(page, page+512), n: page + 512},
		{name: "core 4: pwrite 512+4096 beginning in the page before", do: write(page-512, 512+page), err: unix.EFAULT, stays: true},
		{name: "kernel 2: the same with the bad sector at the page's start", bad: page, do: write(page-512, 512+page), n: 512 + page},
		{name: "kernel 2: good page, then part of the bad one", bad: page, do: write(0, page+512), n: page, stays: true},
		{name: "kernel 2: the trap, sector mid-page takes the good page along", do: write(0, page+512), err: unix.EFAULT, stays: true},
		{name: "rest: ZERO_RANGE whole page", do: allocate(zero|keepSize, page, page)},
		{name: "rest: ZERO_RANGE 512 inside the page", do: allocate(zero|keepSize, page, 512), err: unix.EIO, stays: true},
		{name: "rest: PUNCH_HOLE page", do: allocate(punch, page, page)},
		{name: "rest: PUNCH_HOLE 512", do: allocate(punch, page+1024, 512), err: unix.EIO, stays: true},
		{name: "punch with an edge in the bad page", do: allocate(punch, 0, page+1), err: unix.EIO, stays: true},
		{name: "fallocate 0 inside the file", do: allocate(0, 0, 3*page), stays: true},
		{name: "fallocate 0 beyond the end, good tail", do: allocate(0, 3*page, page), stays: true},
		{name: "collapse", do: allocate(collapse, 0, page), err: unix.EOPNOTSUPP, stays: true},
		{name: "rest: ftruncate to mid-page of the bad page (xfs)", do: truncate(page + 100), err: unix.EIO, stays: true},
		{name: "rest: ftruncate 0", do: truncate(0)},
		{name: "ftruncate to the begin of the bad page", do: truncate(page)},
		{name: "ftruncate behind the bad page", do: truncate(2 * page), stays: true},
		{name: "ftruncate up", do: truncate(9 * page), stays: true},
		{name: "empty write", do: write(page, 0), stays: true},
		{name: "read behind the end", do: read(3*page, page), stays: true},
	})
}

// The last page of a file (facts: lab, XFS column), N = 511.
func TestTailPage(t *testing.T) {
	const size = 2*page + 511
	const bad = 2 * page
	runSteps(t, DAX, size, []step{
		{name: "pread of the tail page", bad: bad, do: read(2*page, page), err: unix.EIO, stays: true},
		{name: "pread of the whole file", bad: bad, do: read(0, size), err: unix.EIO, stays: true},
		{name: "pwrite of just the N bytes", bad: bad, do: write(2*page, 511), err: unix.EFAULT, stays: true},
		{name: "pwrite of 4096", bad: bad, do: write(2*page, page), n: page},
		{name: "append of 1 byte", bad: bad, do: write(size, 1), err: unix.EFAULT, stays: true},
		{name: "append up to the page's end", bad: bad, do: write(size, page-511), err: unix.EFAULT, stays: true},
		{name: "write behind a gap in the tail page", bad: bad, do: write(size+100, 1), err: unix.EIO, stays: true},
		{name: "pwrite of the page after", bad: bad, do: write(3*page, page), err: unix.EIO, stays: true},
		{name: "ftruncate down inside", bad: bad, do: truncate(size - 1), err: unix.EIO, stays: true},
		{name: "ftruncate down to the page's start", bad: bad, do: truncate(2 * page)},
		{name: "ftruncate up", bad: bad, do: truncate(size + 1), err: unix.EIO, stays: true},
		{name: "fallocate beyond the end", bad: bad, do: allocate(0, 0, 9*page), err: unix.EIO, stays: true},
		{name: "the same, size kept", bad: bad, do: allocate(keepSize, 0, 9*page), stays: true},
		{name: "zero range beyond the end over all of it", bad: bad, do: allocate(zero, 2*page, 9*page)},
		{name: "zero range beyond the end from behind it", bad: bad, do: allocate(zero, 3*page, page), err: unix.EIO, stays: true},
		{name: "good tail: all of it", bad: page, do: write(3*page, page), n: page, stays: true},
	})
}

func TestKnownPoisonDAX518(t *testing.T) {
	runSteps(t, DAX518, 3*page, []step{
		{name: "pwrite 4096 aligned", do: write(page, page), err: unix.EIO, stays: true},
		{name: "pwrite with the bad page behind a good one", do: write(0, 2*page), err: unix.EIO, stays: true},
		{name: "pwrite elsewhere", do: write(0, page), n: page, stays: true},
		{name: "pread 1 in it", do: read(page, 1), err: unix.EIO, stays: true},
		{name: "PUNCH_HOLE page", do: allocate(punch, page, page)},
		{name: "ZERO_RANGE page", do: allocate(zero|keepSize, page, page)},
		{name: "punch, then write", do: func(f media.File) (int, error) {
			if err := f.Allocate(punch, page, page, 0); err != nil {
				return 0, err
			}
			return f.Pwrite(fill(512), page, 0)
		}, n: 512},
	})
}

func TestKnownPoisonLine(t *testing.T) {
	const bad = page + 128 // inject poisons 512 bytes from here
	runSteps(t, Line, 3*page, []step{
		{name: "prefix", bad: bad, do: read(0, 3*page), n: bad, stays: true},
		{name: "begins in a bad line", bad: bad, do: read(bad+511, 10), err: unix.EIO, stays: true},
		{name: "behind", bad: bad, do: read(bad+512, 100), n: 100, stays: true},
		{name: "whole page", bad: bad, do: write(page, page), n: page},
		{name: "the lines only", bad: bad, do: write(bad, 512), n: 512},
		{name: "all but the last byte of a line", bad: bad, do: write(bad, 511), n: 448, stays: true},
		{name: "part of the first line", bad: bad, do: write(bad+1, 511), err: unix.EFAULT, stays: true},
		{name: "up to a part of the first line", bad: bad, do: write(bad-10, 20), n: 10, stays: true},
		{name: "part of one line", bad: bad, do: write(bad+1, 10), err: unix.EFAULT, stays: true},
		{name: "punch the lines", bad: bad, do: allocate(punch, bad, 512)},
		{name: "punch a part of a line", bad: bad, do: allocate(punch, bad, 500), err: unix.EIO, stays: true},
		{name: "truncate before the lines", bad: bad, do: truncate(bad - 1)},
		{name: "truncate into a line", bad: bad, do: truncate(bad + 1), err: unix.EIO, stays: true},
	})
}

func TestEarlierExtentComesBack(t *testing.T) {
	b := newBench(t, DAX, extentSize+2*page)
	b.inject(extentSize+page, 64, false)
	b.wantRead(page, extentSize+page, extentSize-page, nil) // ends where the next extent begins
	b.wantRead(extentSize, page, page, nil)
	b.wantRead(extentSize, 2*page, 0, unix.EIO)
	if n, err := b.f.Pwrite(fill(extentSize+page+1), 0, 0); n != extentSize+page || err != nil {
		t.Fatalf("write = %d, %v; want all up to the bad page", n, err)
	}
	old := newBench(t, DAX518, extentSize+2*page)
	old.inject(extentSize+page, 64, false)
	if n, err := old.f.Pwrite(fill(extentSize+page+1), 0, 0); n != extentSize || err != nil {
		t.Fatalf("%s: write = %d, %v; want the first extent", DAX518, n, err)
	}
}

// kernel.md 1: the list is asked before the request is clipped to the size.
func TestOverlongReadMeetsPoisonPastTheEnd(t *testing.T) {
	b := newBench(t, DAX, 2*page)
	b.inject(page, 64, false)
	b.m.mu.Lock()
	p := b.m.files[b.id.Key()]
	p.clear(ranges.Page(page))
	p.bad.Add(ranges.Range{Off: 2 * page, Len: 64}) // can't be injected, but blocks may be preallocated there
	p.listed.Add(ranges.Range{Off: 2 * page, Len: 512})
	b.m.mu.Unlock()
	b.wantRead(0, 2*page, 2*page, nil)
	b.wantRead(0, 2*page+1, 0, unix.EIO)
}

func TestLatent(t *testing.T) {
	const bad = page + 1000 // in the line [5056 +64)
	const line = 5056
	for _, profile := range Profiles() {
		t.Run(profile+": a reader goes on behind the line", func(t *testing.T) {
			b := newBench(t, profile, 3*page)
			b.inject(bad, 1, true)
			if v := b.f.Corroborate(ranges.Page(page)); v != media.Clear {
				t.Fatalf("before any touch: %v", v)
			}
			b.wantRead(0, 3*page, line, nil)
			if v := b.f.Corroborate(ranges.Page(page)); v != media.Listed {
				t.Fatalf("after a short count: %v", v)
			}
			b.wantRead(line+64, page, page, nil)
			missing, granularity := b.f.Salvage(make([]byte, page), page)
			if !slices.Equal(missing, []ranges.Range{{Off: line, Len: 64}}) || granularity != 64 {
				t.Fatalf("salvage of a touched line: missing %v by %d", missing, granularity)
			}
			b.wantRead(line, 1, 0, unix.EIO) // the record has come
			lost := ranges.Range{Off: line, Len: 1}.Widen(b.m.rules.listUnit)
			if missing, granularity = b.f.Salvage(make([]byte, page), page); !slices.Equal(missing, []ranges.Range{lost}) || granularity != lost.Len {
				t.Fatalf("salvage of a listed line: missing %v by %d; want %v", missing, granularity, lost)
			}
		})
		t.Run(profile+": touched at the first byte", func(t *testing.T) {
			b := newBench(t, profile, 3*page)
			b.inject(bad, 1, true)
			b.wantRead(line+63, 1, 0, unix.EFAULT)
			b.wantRead(line+63, 1, 0, unix.EIO)
			if b.m.List()[0].Latent {
				t.Fatal("still called latent")
			}
		})
	}
	t.Run("dax: a write does not see it, and does not end it", func(t *testing.T) {
		b := newBench(t, DAX, 3*page)
		b.inject(bad, 1, true)
		if n, err := b.f.Pwrite(fill(page), page, 0); n != page || err != nil {
			t.Fatalf("write = %d, %v", n, err)
		}
		b.wantRead(page, page, line-page, nil)
		b.restart(DAX)
		b.wantRead(line, 1, 0, unix.EIO) // touched before, and the checksum followed the write
		if n, err := b.f.Pwrite(fill(page), page, 0); n != page || err != nil {
			t.Fatalf("write over known poison = %d, %v", n, err)
		}
		b.wantRead(0, 3*page, 3*page, nil)
	})
	t.Run("dax: a touched line is known to the next write of its page", func(t *testing.T) {
		b := newBench(t, DAX, 3*page)
		b.inject(bad, 1, true)
		b.wantRead(0, 3*page, line, nil)
		if _, err := b.f.Pwrite(fill(10), page, 0); !errors.Is(err, unix.EFAULT) {
			t.Fatalf("part-page write: %v", err)
		}
		if n, err := b.f.Pwrite(fill(page), page, 0); n != page || err != nil {
			t.Fatalf("page write = %d, %v", n, err)
		}
		b.wantRead(0, 3*page, 3*page, nil)
	})
	t.Run("line: a write of the whole line ends it", func(t *testing.T) {
		b := newBench(t, Line, 3*page)
		b.inject(bad, 1, true)
		if n, err := b.f.Pwrite(fill(64), line, 0); n != 64 || err != nil {
			t.Fatalf("write = %d, %v", n, err)
		}
		b.wantRead(0, 3*page, 3*page, nil)
	})
}

// rest: 512-byte reads of the device get the 7 good sectors.
func TestSalvage(t *testing.T) {
	b := newBench(t, DAX, 2*page-100)
	b.inject(page+1600, 1, false)
	b.inject(page+64, 1, true)
	buf := fill(page)
	missing, granularity := b.f.Salvage(buf, page)
	want := []ranges.Range{{Off: page + 64, Len: 64}, {Off: page + 1536, Len: 512}}
	if !slices.Equal(missing, want) || granularity != 512 {
		t.Fatalf("missing %v by %d; want %v by 512", missing, granularity, want)
	}
	for good := range ranges.Of(missing...).Gaps(ranges.Between(page, 2*page-100)) {
		if !bytes.Equal(buf[good.Off-page:good.End()-page], b.data[good.Off:good.End()]) {
			t.Fatalf("wrong bytes in %v", good)
		}
	}
	if !bytes.Equal(buf[page-100:], make([]byte, 100)) {
		t.Fatal("past the end is not zero")
	}
}
