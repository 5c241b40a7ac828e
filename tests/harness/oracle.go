package harness

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Page, Sector and Line are the units in which poison is given to tests.
const (
	Page   = ranges.PageSize
	Sector = ranges.SectorSize
	Line   = ranges.LineSize
)

// Range is the range type of the tests.
type Range = ranges.Range

// Pattern is n bytes that depend on the seed. None is zero, so that a zero
// that is read is a lost byte.
func Pattern(seed uint64, n int) []byte {
	data := make([]byte, n)
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range data {
		data[i] = byte(1 + random.IntN(255))
	}
	return data
}

// File writes a pattern into a new file of the mount and makes it durable.
func (m *Mount) File(rel string, seed uint64, n int) []byte {
	m.t.Helper()
	data := Pattern(seed, n)
	WriteFile(m.t, m.Path(rel), data)
	return data
}

// WriteFile creates a file and makes it durable.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// WriteAt writes through the mount, as one write(2), and reports its errno.
func (m *Mount) WriteAt(rel string, data []byte, off int64) error {
	m.t.Helper()
	f, err := os.OpenFile(m.Path(rel), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	n, err := unix.Pwrite(int(f.Fd()), data, off)
	if err == nil && n != len(data) {
		m.t.Fatalf("a write of %d bytes of %s at %d wrote %d", len(data), rel, off, n)
	}
	return err
}

// Overwrite writes through the mount and into want, which is what the file
// shall hold.
func (m *Mount) Overwrite(rel string, want, data []byte, off int64) []byte {
	m.t.Helper()
	if err := m.WriteAt(rel, data, off); err != nil {
		m.t.Fatalf("writing %d bytes of %s at %d: %v", len(data), rel, off, err)
	}
	return Lay(want, data, off)
}

// Lay is want with data laid over it at off.
func Lay(want, data []byte, off int64) []byte {
	out := slices.Clone(want)
	if short := int(off) + len(data) - len(out); short > 0 {
		out = append(out, make([]byte, short)...)
	}
	copy(out[off:], data)
	return out
}

// Check compares a file with what it has to hold: exactly the bytes in lost
// are zero and in the ledger, all others are those of want.
func (m *Mount) Check(rel string, want []byte, lost ...Range) {
	m.t.Helper()
	m.CheckContent(rel, want, lost...)
	expected, listed := ranges.Of(lost...), ranges.Of()
	for _, row := range m.Lost(rel) {
		listed.Add(row.Range)
	}
	if expected.String() != listed.String() {
		m.t.Errorf("%s: the ledger has %v, lost is %v", rel, listed, expected)
	}
}

// CheckWithin is Check where not all that may be lost has to be: a byte is what
// want says and not in the ledger, or it is zero, in the ledger, and in allowed.
func (m *Mount) CheckWithin(rel string, want []byte, allowed *ranges.Set) {
	m.t.Helper()
	got, err := os.ReadFile(m.Path(rel))
	if err != nil {
		m.t.Errorf("reading %s: %v", rel, err)
		return
	}
	var lost []Range
	for _, row := range m.Lost(rel) {
		lost = append(lost, row.Range)
		if !allowed.Contains(row.Range) {
			m.t.Errorf("%s: %v is in the ledger (%s), and only %v may be lost", rel, row.Range, row.State, abridged(allowed))
		}
	}
	Compare(m.t, rel, got, want, lost...)
}

// Drop drops a file from the page cache of the mount: the next read has to go
// down.
func (m *Mount) Drop(rel string) {
	m.t.Helper()
	dropPages(m.t, m.Path(rel), os.O_RDWR)
}

func dropPages(t testing.TB, path string, flags int) {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags != os.O_RDONLY {
		if err := f.Sync(); err != nil { // dirty pages would stay
			t.Errorf("fsync of %s: %v", path, err)
		}
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// CheckContent is Check without the ledger.
func (m *Mount) CheckContent(rel string, want []byte, lost ...Range) {
	m.t.Helper()
	got, err := os.ReadFile(m.Path(rel))
	if err != nil {
		m.t.Errorf("reading %s: %v", rel, err)
		return
	}
	Compare(m.t, rel, got, want, lost...)
}

// Compare reports where got is not want with zeros in lost.
func Compare(t testing.TB, name string, got, want []byte, lost ...Range) {
	t.Helper()
	want = slices.Clone(want)
	for _, r := range lost {
		clear(want[min(r.Off, int64(len(want))):min(r.End(), int64(len(want)))])
	}
	if len(got) != len(want) {
		t.Errorf("%s has %d bytes, want %d", name, len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return
	}
	wrong := ranges.Of()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			wrong.Add(Range{Off: int64(i), Len: 1})
		}
	}
	if !wrong.Empty() {
		first := wrong.Slice()[0].Off
		t.Errorf("%s differs in %v: at %d is %#x, want %#x", name, abridged(wrong), first, got[first], want[first])
	}
}

// abridged is the first ranges of a set.
func abridged(s *ranges.Set) []Range {
	all := s.Slice()
	return all[:min(len(all), 12)]
}

// Cured reports poison that is still under a range of a file.
func (m *Mount) Cured(rel string, r Range) {
	m.t.Helper()
	if left := m.Poison(rel); left.Overlaps(r) {
		m.t.Errorf("%s: in %v there is still poison: %v", rel, r, left)
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}
