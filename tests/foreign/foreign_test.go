// Package foreign shows the promises on media that this project did not
// write: btrfs, whose checksums turn flipped bytes into EIO, and a FUSE
// filesystem with bad ranges (tests/badmedia).
package foreign

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page = harness.Page
	line = harness.Line
)

type rng = harness.Range

func TestMain(m *testing.M) { harness.Main(m) }

func pageAt(n int64) rng { return rng{Off: n * page, Len: page} }

// failing are the pages that can't be read without mendfs.
func failing(t *testing.T, path string) []int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var bad []int64
	for off := int64(0); off < info.Size(); off += page {
		if _, err := f.ReadAt(make([]byte, min(page, info.Size()-off)), off); errors.Is(err, unix.EIO) {
			bad = append(bad, off/page)
		} else if err != nil {
			t.Error(err)
		}
	}
	return bad
}

func TestBtrfsWithFlippedBytes(t *testing.T) {
	d := harness.NewDisk(t, "btrfs", 128, "-m", "single", "-d", "single")
	data := harness.Pattern(1, 256*page)
	file := d.At + "/f"
	harness.WriteFile(t, file, data)
	sound := harness.Pattern(2, 8*page)
	harness.WriteFile(t, d.At+"/sound", sound)
	bad := []int64{3, 20, 21, 100, 255}
	var flipped [][]byte
	var gone []rng
	for _, n := range bad {
		flipped = append(flipped, data[n*page:(n+1)*page])
		gone = append(gone, pageAt(n))
	}
	d.Flip(flipped...)
	if got := failing(t, file); fmt.Sprint(got) != fmt.Sprint(bad) {
		t.Fatalf("without mendfs the pages %v fail, want %v", got, bad)
	}

	t.Run("strict is EIO", func(t *testing.T) {
		m := harness.New(t, harness.Config{Backing: d.At, Flags: []string{"--semantics", "strict"}})
		if got := failing(t, m.Path("f")); fmt.Sprint(got) != fmt.Sprint(bad) {
			t.Errorf("with strict the pages %v fail, want %v", got, bad)
		}
	})

	m := harness.New(t, harness.Config{Backing: d.At})
	m.Check("f", data, gone...)
	m.Check("sound", sound)
	for _, row := range m.Lost("f") {
		if row.Source != "kernel" || row.State != "lost" {
			t.Errorf("row %+v, want source kernel and state lost", row)
		}
	}
	if got := failing(t, file); fmt.Sprint(got) != fmt.Sprint(bad) {
		t.Errorf("after reads through mendfs the pages %v fail without it, want %v still", got, bad)
	}

	// Part of page 3, all of page 20, page 21 from its middle on into 22.
	want := m.Overwrite("f", data, harness.Pattern(2, 100), 3*page+100)
	want = m.Overwrite("f", want, harness.Pattern(3, page), 20*page)
	want = m.Overwrite("f", want, harness.Pattern(4, page), 21*page+2048)
	lost := ranges.Of(gone...)
	for _, r := range []rng{{Off: 3*page + 100, Len: 100}, pageAt(20), {Off: 21*page + 2048, Len: page}} {
		lost.Remove(r)
	}
	m.Check("f", want, lost.Slice()...)
	m.Restart()
	m.Check("f", want, lost.Slice()...)
	m.Stop()
	if got := failing(t, file); fmt.Sprint(got) != "[100 255]" {
		t.Errorf("after the overwrites the pages %v fail without mendfs, want [100 255]", got)
	}
}

// variants are the ways in which the FUSE filesystem can be bad, with what fails
// at once.
var variants = []struct {
	name  string
	unit  int64
	flags []string
}{
	{"lines", line, []string{"-unit", "64"}},
	{"pages", page, []string{"-unit", "4096"}},
	{"pages, cached", page, []string{"-unit", "4096", "-cached"}},
	{"pages, no file handles", page, []string{"-unit", "4096", "-no-handles"}},
}

func eachVariant(t *testing.T, test func(t *testing.T, b *harness.BadMedia, unit int64)) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) { test(t, harness.NewBadMedia(t, v.flags...), v.unit) })
	}
}

// Exactly what the medium can't give is lost: lines where it fails by lines.
func TestReadsOverBadMedia(t *testing.T) {
	eachVariant(t, func(t *testing.T, b *harness.BadMedia, unit int64) {
		const size = 1<<20 + 77
		data := b.File("f", 1, size)
		places := []rng{{Off: 0, Len: 1}, {Off: 7*page + 640, Len: 1}, {Off: 30 * page, Len: 2 * page}, {Off: 128<<10 - 1, Len: 2}, {Off: size - 1, Len: 1}}
		b.Bad("f", places...)
		m := harness.New(t, harness.Config{Backing: b.At})
		gone := ranges.Of()
		for _, r := range places {
			gone.Add(r.Widen(unit).Intersect(rng{Len: size}))
		}
		m.Check("f", data, gone.Slice()...)
		m.Drop("f")
		m.Check("f", data, gone.Slice()...)

		want := m.Overwrite("f", data, []byte("part"), 7*page)
		want = m.Overwrite("f", want, harness.Pattern(5, page), 30*page)
		want = m.Overwrite("f", want, []byte("the new end"), size)
		gone.Remove(pageAt(30))
		gone.Remove(rng{Off: 7 * page, Len: 4})
		m.Check("f", want, gone.Slice()...)
		m.Drop("f")
		m.Check("f", want, gone.Slice()...)
		for _, cured := range []rng{pageAt(7), pageAt(30), ranges.Page(size - 1)} {
			if left := b.Left("f"); left.Overlaps(cured) {
				t.Errorf("in %v is still bad: %v", cured, left)
			}
		}
		if !b.Left("f").Contains(pageAt(31)) {
			t.Error("a page that nobody wrote was changed")
		}
	})
}

// TestShortAnswersOfFUSE: the medium answers short in front of what is bad, and the kernel
// caches what it answers: it takes such an answer for the end of the file, fills up with
// zeros, and where another request is under way it hands these on as data.
func TestShortAnswersOfFUSE(t *testing.T) {
	b := harness.NewBadMedia(t, "-unit", "64", "-short")
	const size = 3<<20 + 77
	data := b.File("f", 1, size)
	b.File("sound", 2, size)
	gone := ranges.Of()
	for off := int64(700); off < size; off += 50_000 {
		b.Bad("f", rng{Off: off, Len: 1})
		gone.Add(rng{Off: off, Len: 1}.Widen(line))
	}
	m := harness.New(t, harness.Config{Backing: b.At})
	for range 10 {
		m.Check("f", data, gone.Slice()...)
		m.Drop("f")
	}
	want := m.Overwrite("f", data, []byte("part"), 12*page+1500)
	gone.Remove(rng{Off: 12*page + 1500, Len: 4})
	m.Drop("f")
	m.Check("f", want, gone.Slice()...)
}

// Where there is next to nothing to compare a failure with.
func TestFewPagesOnBadMedia(t *testing.T) {
	tests := []struct {
		name   string
		size   int
		beside bool // there is a second, sound file
	}{
		{"a file of one page beside another file", page, true},
		{"a file of a few bytes beside another file", 100, true},
		{"the only file, of two pages", 2 * page, false},
	}
	eachVariant(t, func(t *testing.T, b *harness.BadMedia, unit int64) {
		for i, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				name := fmt.Sprint("f", i)
				data := b.File(name, 1, test.size)
				defer os.Remove(b.Dir + "/" + name)
				if test.beside {
					b.File("sound", 2, 4*page)
					defer os.Remove(b.Dir + "/sound")
				}
				bad := rng{Off: 0, Len: 1}
				b.Bad(name, bad)
				m := harness.New(t, harness.Config{Backing: b.At})
				gone := bad.Widen(unit).Intersect(rng{Len: int64(test.size)})
				m.Check(name, data, gone)
				want := m.Overwrite(name, data, []byte("x"), 70)
				rest := ranges.Of(gone)
				rest.Remove(rng{Off: 70, Len: 1})
				m.Check(name, want, rest.Slice()...)
				if left := b.Left(name); !left.Empty() {
					t.Errorf("still bad: %v", left)
				}
				m.Stop()
			})
		}
	})
}

func TestStormOverBadMedia(t *testing.T) {
	eachVariant(t, func(t *testing.T, b *harness.BadMedia, unit int64) {
		m := harness.New(t, harness.Config{Backing: b.At})
		m.File("sound", 99, 4*page)
		for seed := range uint64(3) {
			name := fmt.Sprint("f", seed)
			s := harness.NewStorm(t, m, name, seed, func(r rng) rng {
				m.Drop(name)
				b.Bad(name, r)
				return r.Widen(unit)
			})
			s.Rage(60)
		}
	})
}

// Reading a damaged file costs READs in proportion to its damage, not to its
// size: at most a few per bad page and halving.
func TestReadsAreBounded(t *testing.T) {
	b := harness.NewBadMedia(t, "-unit", "4096")
	const n, k = 8192, 20
	data := b.File("f", 1, n*page)
	m := harness.New(t, harness.Config{Backing: b.At})
	m.CheckContent("f", data)
	m.Drop("f")
	clean := b.Reads()
	m.CheckContent("f", data)
	m.Drop("f")
	clean = b.Reads() - clean

	var gone []rng
	for i := range int64(k) {
		gone = append(gone, pageAt(i*(n/k)+7))
	}
	b.Bad("f", gone...)
	before := b.Reads()
	m.Check("f", data, gone...)
	extra := b.Reads() - before - clean
	// A READ has at most 256 pages, so 8 halvings; and each bad page is asked
	// for again, alone, and by the salvager's 8 sectors and 64 lines, 8 of them
	// in two ways.
	if most := int64(k * (2*8 + 2 + 8 + 64 + 8 + 4)); extra > most {
		t.Errorf("%d bad pages of %d cost %d more READs than the %d of a clean file, want at most %d", k, n, extra, clean, most)
	}
	m.Drop("f")
	before = b.Reads()
	m.CheckContent("f", data, gone...)
	again := b.Reads() - before
	if most := clean + int64(k*4); again > most {
		t.Errorf("the second read cost %d READs, a clean one %d, want at most %d", again, clean, most)
	}
}
