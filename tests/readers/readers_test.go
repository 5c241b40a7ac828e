// Package readers shows that nobody sees a repair that is half done, and that the
// kernel's page cache does not keep what a repair has changed, whatever way a
// program reads.
package readers

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page  = harness.Page
	pages = 64
)

func TestMain(m *testing.M) { harness.Main(m) }

// open opens a file of the mount until the end of the test.
func open(t *testing.T, m *harness.Mount, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(m.Path(name), flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mapped(t *testing.T, f *os.File, size int) []byte {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	return b
}

// aligned is memory that direct I/O takes.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	return b
}

// poison hits a file as hardware does: page caches stay as they are.
func poison(t *testing.T, m *harness.Mount, name string, rs ...harness.Range) {
	t.Helper()
	args := []string{"inject", "--on-real-files", "--keep-cache", m.Path(name)}
	for _, r := range rs {
		args = append(args, "--range", fmt.Sprintf("%d+%d", r.Off, r.Len))
	}
	if r := harness.Mendfs(t, args...); r.Exit != 0 {
		t.Fatalf("mendfs inject: exit %d: %s", r.Exit, r.Stderr)
	}
}

// TestCacheFollowsARepair: a page was cached before it was hit, so that the cache
// has bytes that the repair of the page makes zero. They must not be there for
// some readers and not for others.
func TestCacheFollowsARepair(t *testing.T) {
	for _, over := range []bool{false, true} { // over: the kernel trusts its cache for good
		t.Run(fmt.Sprintf("over=%v", over), func(t *testing.T) {
			cacheFollows(t, harness.New(t, harness.Config{Over: over, Flags: []string{"--simulate", "dax"}}))
		})
	}
}

func cacheFollows(t *testing.T, m *harness.Mount) {
	want := m.File("f", 1, 16*page)
	f := open(t, m, "f", os.O_RDWR)
	direct := open(t, m, "f", os.O_RDONLY|unix.O_DIRECT)
	memory := mapped(t, f, len(want))
	if !bytes.Equal(memory, want) {
		t.Fatal("the file is not what was written")
	}
	lost := harness.Range{Off: 3 * page, Len: harness.Sector}
	poison(t, m, "f", lost)
	if _, err := f.WriteAt([]byte("part"), 3*page+1024); err != nil {
		t.Fatal(err)
	}
	want = harness.Lay(want, []byte("part"), 3*page+1024)
	clear(want[lost.Off:lost.End()])
	buffered, past := make([]byte, len(want)), aligned(t, len(want))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := f.ReadAt(buffered, 0); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(buffered, want) && bytes.Equal(memory, want) {
			break
		}
		if time.Now().After(deadline) {
			harness.Compare(t, "read", buffered, want)
			harness.Compare(t, "mapped", bytes.Clone(memory), want)
			break
		}
	}
	if _, err := direct.ReadAt(past, 0); err != nil {
		t.Fatal(err)
	}
	harness.Compare(t, "read past the cache", past, want)
}

// TestDirtyCachedPageKeepsItsBytes: the same where the cached page was dirty: it is
// written back, with the bytes that the repair had to give up.
func TestDirtyCachedPageKeepsItsBytes(t *testing.T) {
	m := harness.New(t, harness.Config{Over: true, Flags: []string{"--simulate", "dax"}})
	want := m.File("f", 1, 16*page)
	f := open(t, m, "f", os.O_RDWR)
	memory, err := unix.Mmap(int(f.Fd()), 3*page, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(memory); err != nil {
			t.Error(err)
		}
	}()
	copy(memory[2000:], "stored")
	poison(t, m, "f", harness.Range{Off: 3 * page, Len: harness.Sector})
	if _, err := f.WriteAt([]byte("part"), 3*page+1024); err != nil {
		t.Fatal(err)
	}
	want = harness.Lay(harness.Lay(want, []byte("stored"), 3*page+2000), []byte("part"), 3*page+1024)
	past := aligned(t, len(want))
	direct := open(t, m, "f", os.O_RDONLY|unix.O_DIRECT)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := direct.ReadAt(past, 0); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(past, want) || time.Now().After(deadline) {
			break
		}
	}
	harness.Compare(t, "read past the cache", past, want)
	if rows := m.Lost("f"); len(rows) != 0 {
		t.Errorf("the ledger still has %+v", rows)
	}
}

// TestNoReaderSeesARepairHalfDone: whoever reads while bad pages are written in
// part gets the bytes from before or from after, or zeros for what is lost.
func TestNoReaderSeesARepairHalfDone(t *testing.T) {
	for _, profile := range []string{"dax", "dax-5.18"} {
		for _, latent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/latent=%v", profile, latent), func(t *testing.T) { repairs(t, profile, latent) })
		}
	}
}

func repairs(t *testing.T, profile string, latent bool) {
	m := harness.Simulated(t, profile)
	old := m.File("f", 1, pages*page)
	w := &watch{t: t, old: old, fresh: harness.Pattern(2, pages*page), from: open(t, m, "f", os.O_RDONLY)}
	var stop atomic.Bool
	var all sync.WaitGroup
	for name, read := range map[string]func(random *rand.Rand){
		"read":            w.reads(w.from, 3*page+100),
		"read past cache": w.reads(open(t, m, "f", os.O_RDONLY|unix.O_DIRECT), 4*page),
		"map":             w.maps(mapped(t, w.from, pages*page)),
		"copy":            w.copies(open(t, m, "copy", os.O_RDWR|os.O_CREATE)),
		"splice":          w.splices(),
	} {
		all.Go(func() {
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			for !stop.Load() && !t.Failed() {
				read(random)
			}
			if t.Failed() {
				t.Logf("%s: seed %d", name, seed)
			}
		})
	}
	f := open(t, m, "f", os.O_RDWR)
	for round := range int64(4) {
		var bad []harness.Range
		for n := round % 2; n < pages; n += 2 {
			bad = append(bad, harness.Range{Off: n*page + 1024, Len: 64})
		}
		if latent {
			m.InjectLatent("f", bad...)
		} else {
			m.Inject("f", bad...)
		}
		for _, b := range bad {
			at := b.Off + 1000
			if _, err := f.WriteAt(w.fresh[at:at+300], at); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	all.Wait()
}

// watch knows what the file may hold.
type watch struct {
	t          *testing.T
	old, fresh []byte
	from       *os.File
}

// check looks at bytes that were read at off.
func (w *watch) check(how string, b []byte, off int64) {
	for i, c := range b {
		at := off + int64(i)
		inPage := at % page
		mayBeLost := inPage >= 1024 && inPage < 1024+512
		isWritten := inPage >= 2024 && inPage < 2324
		if c == w.old[at] || c == 0 && mayBeLost || isWritten && c == w.fresh[at] {
			continue
		}
		w.t.Errorf("%s: byte %d is %#x, was %#x", how, at, c, w.old[at])
		return
	}
}

func (w *watch) reads(f *os.File, n int) func(*rand.Rand) {
	b := aligned(w.t, (n+page-1)&^(page-1))[:n]
	return func(random *rand.Rand) {
		off := random.Int64N(pages-4) * page
		if _, err := f.ReadAt(b, off); err != nil {
			w.t.Errorf("read %d at %d: %v", n, off, err)
			return
		}
		w.check("read", b, off)
	}
}

func (w *watch) maps(memory []byte) func(*rand.Rand) {
	return func(random *rand.Rand) {
		off := random.Int64N(pages) * page
		if err := unix.Madvise(memory[off:off+page], unix.MADV_DONTNEED); err != nil {
			w.t.Error(err)
		}
		if err := unix.Fadvise(int(w.from.Fd()), off, page, unix.FADV_DONTNEED); err != nil {
			w.t.Error(err)
		}
		w.check("map", bytes.Clone(memory[off:off+page]), off)
	}
}

func (w *watch) copies(to *os.File) func(*rand.Rand) {
	b := make([]byte, 4*page)
	return func(random *rand.Rand) {
		off, zero := random.Int64N(pages-4)*page, int64(0)
		n, err := unix.CopyFileRange(int(w.from.Fd()), &off, int(to.Fd()), &zero, len(b), 0)
		if err != nil || n != len(b) {
			w.t.Errorf("copy_file_range: %d, %v", n, err)
			return
		}
		if _, err := to.ReadAt(b, 0); err != nil {
			w.t.Error(err)
		}
		w.check("copy", b, off-int64(n))
	}
}

func (w *watch) splices() func(*rand.Rand) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Close(pipe[0]); _ = unix.Close(pipe[1]) })
	b := make([]byte, 4*page)
	return func(random *rand.Rand) {
		off := random.Int64N(pages-4) * page
		at := off
		n, err := unix.Splice(int(w.from.Fd()), &at, pipe[1], nil, len(b), 0)
		if err != nil || n == 0 {
			w.t.Errorf("splice: %d, %v", n, err)
			return
		}
		for done := 0; done < int(n); {
			got, err := unix.Read(pipe[0], b[done:n])
			if err != nil {
				w.t.Error(err)
				return
			}
			done += got
		}
		w.check("splice", b[:n], off)
	}
}
