//go:build lab

package guest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

// readSize is of a file that ends within its last page, a sector of which is bad
// behind the end.
const readSize = 4<<20 - 1000

// badForReads is the first and the last sector of the file, one in a page of its own,
// two in one page, a run of pages, and one past the end.
func badForReads() []int64 {
	bad := []int64{0, 803, 1001, 1006}
	for s := int64(2005); s < 2005+30; s++ {
		bad = append(bad, s)
	}
	return append(bad, (readSize-1)/sector, (readSize-1)/sector+1)
}

// ways are the ways to read a whole file.
var ways = []struct {
	name string
	read func(f *os.File) ([]byte, error)
}{
	{"512 bytes at once", inPieces(512)},
	{"4096 bytes at once", inPieces(4096)},
	{"5000 bytes at once", inPieces(5000)},
	{"1 MiB at once", inPieces(1 << 20)},
	{"mmap", mapped},
	{"O_DIRECT, 4096 bytes at once", direct(4096)},
	{"O_DIRECT, 1 MiB at once", direct(1 << 20)},
	{"sendfile", sendfile},
	{"copy_file_range", copyFileRange},
	{"backwards", backwards},
	{"by single bytes around the bad sectors", singleBytes},
}

// TestReads reads a file with bad sectors in every way: exactly the bytes of bad sectors
// are zero, and the ledger has them, and nothing of the list has changed.
func TestReads(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		content := make([]byte, readSize)
		random := rand.New(rand.NewPCG(1, 2))
		for i := range content {
			content[i] = byte(random.Uint32()) | 1
		}
		path := d.fill(t, "file", content)
		bad := badForReads()
		d.poison(t, path, bad...)
		want, lost := bytes.Clone(content), ranges.Of()
		for _, s := range bad {
			if r := ranges.Between(s*sector, min((s+1)*sector, readSize)); !r.Empty() {
				clear(want[r.Off:r.End()])
				lost.Add(r)
			}
		}
		listed := d.listed(t)
		m := harness.New(t, harness.Config{Backing: d.at})
		for _, way := range ways {
			dropCaches(t)
			checkWay(t, m, way.name, way.read, want)
		}
		if now := d.listed(t); !slices.Equal(now, listed) {
			t.Errorf("reading has changed the list: %v, was %v", now, listed)
		}
		checkLedger(t, m, lost)
		checkLostEvents(t, d, m, lost)
		checkEvents(t, m)
		mapsNothingOf(t, m)
	})
}

func checkWay(t *testing.T, m *harness.Mount, name string, read func(*os.File) ([]byte, error), want []byte) {
	t.Helper()
	f, err := os.Open(m.Path("file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := read(f)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d of %d bytes, %v, first difference at %d", name, len(got), len(want), err, firstDifference(got, want))
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// dropCaches makes the next reads go down to the medium.
func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// checkLedger compares the lost ranges, and that they were asked for by sectors.
func checkLedger(t *testing.T, m *harness.Mount, want *ranges.Set) {
	t.Helper()
	got := ranges.Of()
	for _, row := range m.Lost("file") {
		got.Add(row.Range)
		wholePages := row.Range == row.Range.Widen(page)
		if row.State != "lost" || row.Granularity != sector && !wholePages {
			t.Errorf("%v is %s, asked for by %d bytes", row.Range, row.State, row.Granularity)
		}
	}
	if fmt.Sprint(got.Slice()) != fmt.Sprint(want.Slice()) {
		t.Errorf("the ledger has %v, lost is %v", got.Slice(), want.Slice())
	}
}

// checkLostEvents compares the events, and the sectors that they name.
func checkLostEvents(t *testing.T, d *disk, m *harness.Mount, want *ranges.Set) {
	t.Helper()
	got := ranges.Of()
	extents := extentsOf(t, m.Below("file"))
	for _, e := range m.Events() {
		if e.Event != event.Lost {
			continue
		}
		got.Add(ranges.Range{Off: e.Offset, Len: e.Length})
		i := slices.IndexFunc(extents, func(x extent) bool { return x.file.Contains(ranges.Range{Off: e.Offset, Len: 1}) })
		if at := (extents[i].device + e.Offset - extents[i].file.Off) / sector; e.Sector == nil || *e.Sector != at || e.Device != d.path() {
			t.Errorf("%+v: it is sector %d of %s", e, at, d.path())
		}
	}
	if fmt.Sprint(got.Slice()) != fmt.Sprint(want.Slice()) {
		t.Errorf("events tell of %v, lost is %v", got.Slice(), want.Slice())
	}
}

func inPieces(n int) func(*os.File) ([]byte, error) {
	return func(f *os.File) ([]byte, error) {
		var all []byte
		buf := make([]byte, n)
		for {
			got, err := unix.Read(int(f.Fd()), buf)
			if err != nil || got == 0 {
				return all, err
			}
			all = append(all, buf[:got]...)
		}
	}
}

// direct reads past the page cache, into memory that allows it.
func direct(n int) func(*os.File) ([]byte, error) {
	return func(f *os.File) ([]byte, error) {
		again, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return nil, err
		}
		defer again.Close()
		buf := aligned(n)
		var all []byte
		for {
			got, err := unix.Pread(int(again.Fd()), buf, int64(len(all)))
			all = append(all, buf[:max(0, got)]...)
			if err != nil || got < n {
				return all, err
			}
		}
	}
}

func mapped(f *os.File) ([]byte, error) {
	memory, err := unix.Mmap(int(f.Fd()), 0, readSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(memory), unix.Munmap(memory)
}

func sendfile(f *os.File) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	ended := make(chan error, 1)
	go func() { // ends with the file, or when r is closed
		defer w.Close()
		for {
			n, err := unix.Sendfile(int(w.Fd()), int(f.Fd()), nil, 1<<20)
			if err != nil || n == 0 {
				ended <- err
				return
			}
		}
	}()
	all, err := io.ReadAll(r)
	if err != nil {
		return all, err
	}
	return all, <-ended
}

func copyFileRange(f *os.File) ([]byte, error) {
	name := f.Name() + ".copy"
	defer os.Remove(name)
	return copyFileRangeTo(f, name)
}

func copyFileRangeTo(f *os.File, name string) ([]byte, error) {
	to, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	for {
		n, err := unix.CopyFileRange(int(f.Fd()), nil, int(to.Fd()), nil, 1<<20, 0)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return os.ReadFile(name)
		}
	}
}

func backwards(f *os.File) ([]byte, error) {
	all := make([]byte, readSize)
	for off := int64(readSize); off > 0; {
		n := min(off, 7777)
		off -= n
		if _, err := f.ReadAt(all[off:off+n], off); err != nil {
			return all, err
		}
	}
	return all, nil
}

func singleBytes(f *os.File) ([]byte, error) {
	all := make([]byte, readSize)
	if _, err := f.ReadAt(all, 0); err != nil {
		return nil, err
	}
	for _, s := range badForReads() {
		for _, off := range []int64{s*sector - 1, s * sector, s*sector + 1, (s+1)*sector - 1, (s + 1) * sector} {
			if off < 0 || off >= readSize {
				continue
			}
			if n, err := unix.Pread(int(f.Fd()), all[off:off+1], off); err != nil || n != 1 {
				return nil, fmt.Errorf("byte %d: %d, %w", off, n, err)
			}
		}
	}
	return all, nil
}
