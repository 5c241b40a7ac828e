package mediatest

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const pg = ranges.PageSize

func fill(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

// newPmem is a Pmem with a durable file of two pages of 'a'.
func newPmem(t *testing.T) (*Pmem, media.File) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	m := NewPmem()
	if err := m.Put(int(f.Fd()), fill('a', 2*pg)); err != nil {
		t.Fatal(err)
	}
	return m, m.Open(int(f.Fd()))
}

// afterCuts is what 200 power cuts leave of the file: which bytes there are in
// its first page, and its sizes.
func afterCuts(t *testing.T, m *Pmem, fd int) (found [256]bool, sizes map[int]bool) {
	t.Helper()
	sizes = map[int]bool{}
	for seed := range uint64(200) {
		got, err := m.Cut(rand.New(rand.NewPCG(seed, 0))).Content(fd)
		if err != nil {
			t.Fatal(err)
		}
		sizes[len(got)] = true
		for _, c := range got[:min(pg, len(got))] {
			found[c] = true
		}
	}
	return found, sizes
}

func TestCutTakesBackWhatIsNotSynced(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(m *Pmem, f media.File) error
		a, b, z bool // whether 'a', 'b' and zero may be found
		garbage bool
		sizes   int
	}{
		{"write", func(_ *Pmem, f media.File) error { _, err := f.Pwrite(fill('b', pg), 0, 0); return err }, true, true, false, false, 1},
		{"cleared", func(m *Pmem, f media.File) error {
			_, err := f.Pwrite(fill('b', pg), 0, 0)
			if err == nil {
				err = m.Cleared(f.Fd(), ranges.Page(0))
			}
			return err
		}, false, true, false, true, 1},
		{"synced", func(_ *Pmem, f media.File) error {
			_, err := f.Pwrite(fill('b', pg), 0, 0)
			if err == nil {
				err = f.Sync(false)
			}
			return err
		}, false, true, false, false, 1},
		{"punched", func(_ *Pmem, f media.File) error {
			return f.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, pg, 0)
		}, true, false, true, false, 1},
		{"truncated", func(_ *Pmem, f media.File) error { return f.Truncate(100) }, true, false, true, false, 2},
		{"longer", func(_ *Pmem, f media.File) error { _, err := f.Pwrite(fill('b', pg), 2*pg, 0); return err }, true, false, false, false, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, f := newPmem(t)
			if err := c.change(m, f); err != nil {
				t.Fatal(err)
			}
			found, sizes := afterCuts(t, m, f.Fd())
			garbage := false
			for b := Garbage; b < 256; b++ {
				garbage = garbage || found[b]
			}
			if found['a'] != c.a || found['b'] != c.b || found[0] != c.z || garbage != c.garbage || len(sizes) != c.sizes {
				t.Errorf("a %v, b %v, zero %v, garbage %v, sizes %v", found['a'], found['b'], found[0], garbage, sizes)
			}
		})
	}
}

// TestCloneSharesNothing that changes.
func TestCloneSharesNothing(t *testing.T) {
	m, f := newPmem(t)
	clone := m.Clone()
	if _, err := f.Pwrite(fill('b', pg), 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(10); err != nil {
		t.Fatal(err)
	}
	got, err := clone.Content(f.Fd())
	if err != nil || !bytes.Equal(got, fill('a', 2*pg)) {
		t.Errorf("the clone has changed: %d bytes, %v", len(got), err)
	}
}
