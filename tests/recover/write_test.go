package recover

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

// without is r without the bytes in o.
func without(r, o rng) []rng {
	s := ranges.Of(r)
	s.Remove(o)
	return s.Slice()
}

// notMet reports whether a write passes by the poison without meeting it: where
// only the bad line itself fails, and nobody has read it, no one can know.
func notMet(lost func(rng) rng, bad, write rng) bool {
	return lost(bad).Len == line && !write.Overlaps(lost(bad))
}

// dd conv=notrunc over a poisoned line: the poison of the touched pages is gone,
// what was written is there, what could be salvaged too, and the rest is zero
// and recorded.
func TestOverwritesCure(t *testing.T) {
	bad := rng{Off: 5*page + 1024, Len: line}
	tests := []struct {
		name  string
		write rng
		read  bool // somebody met the poison before
	}{
		{"part of the page, beside the poison", rng{Off: 5*page + 3000, Len: 100}, false},
		{"part of the page, met before", rng{Off: 5*page + 3000, Len: 100}, true},
		{"part of the page, over part of the poison", rng{Off: 5*page + 1030, Len: 7}, false},
		{"part of the page, over all of the poison", rng{Off: 5*page + 900, Len: 1000}, false},
		{"part of this page and the next", rng{Off: 5*page + 4000, Len: 1000}, false},
		{"part of this page and the one before", rng{Off: 4*page + 4000, Len: 500}, false},
		{"the whole page", rng{Off: 5 * page, Len: page}, false},
		{"the whole page, met before", rng{Off: 5 * page, Len: page}, true},
		{"many pages", rng{Off: 2 * page, Len: 7 * page}, false},
		{"many pages, not whole ones", rng{Off: 2*page + 1, Len: 3*page + 1500}, false},
	}
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		for i, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				name := fmt.Sprint("f", i)
				data := m.File(name, uint64(i), 16*page)
				m.Inject(name, bad)
				if test.read {
					m.CheckContent(name, data, lost(bad))
				}
				text := harness.Pattern(100+uint64(i), int(test.write.Len))
				m.Sh(`dd if="$1" of="$2" bs=1M oflag=seek_bytes seek="$3" conv=notrunc status=none`,
					outside(t, text), name, fmt.Sprint(test.write.Off))
				want := harness.Lay(data, text, test.write.Off)
				gone := without(lost(bad), test.write)
				if !test.read && notMet(lost, bad, test.write) {
					m.Check(name, want, gone...) // meets it
					return
				}
				m.Check(name, want, gone...)
				m.Cured(name, rng{Len: 16 * page})
				harness.Compare(t, "the backing file", readFile(t, m.Below(name)), want, gone...)
				for _, row := range m.Lost(name) {
					if row.State != "reinitialized" {
						t.Errorf("%v is %q after the repair, want reinitialized", row.Range, row.State)
					}
				}
			})
		}
	})
}

func TestAppendOverABadTailPage(t *testing.T) {
	for _, tail := range []int64{1, 511, 1000, 4095} {
		t.Run(fmt.Sprint(tail), func(t *testing.T) {
			eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
				size := 3*page + tail
				data := m.File("f", 1, int(size))
				m.Inject("f", rng{Off: size - 1, Len: 1})
				gone := lost(rng{Off: size - 1, Len: 1}).Intersect(rng{Len: size})
				m.Sh(`printf hello >>f`)
				want := harness.Lay(data, []byte("hello"), size)
				m.Check("f", want, gone)
				m.Cured("f", rng{Len: 1 << 30})
				harness.Compare(t, "the backing file", readFile(t, m.Below("f")), want, gone)
			})
		})
	}
}

func TestOverwriteOfABadTailPageKeepsTheSize(t *testing.T) {
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		const size = 2*page + 1000
		data := m.File("f", 1, size)
		bad := rng{Off: 2*page + 128, Len: 1}
		m.Inject("f", bad)
		m.CheckContent("f", data, lost(bad))
		write := rng{Off: 2*page + 10, Len: 20}
		want := m.Overwrite("f", data, harness.Pattern(9, 20), write.Off)
		m.Check("f", want, without(lost(bad), write)...)
		m.Cured("f", rng{Len: 1 << 30})
		if got := readFile(t, m.Below("f")); len(got) != size {
			t.Errorf("the backing file has %d bytes, want %d", len(got), size)
		}
	})
}

func TestTruncateIntoABadPage(t *testing.T) {
	bad := rng{Off: 5*page + 2048, Len: 1}
	for name, size := range map[string]int64{
		"before the poison":          5*page + 100,
		"within the poisoned sector": 5*page + 2048 + 32,
		"behind the poison":          5*page + 3000,
		"at the begin of the page":   5 * page,
		"to nothing":                 0,
	} {
		t.Run(name, func(t *testing.T) {
			eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
				data := m.File("f", 1, 8*page)
				m.Inject("f", bad)
				m.Sh(`truncate -s "$1" f`, fmt.Sprint(size))
				gone := lost(bad).Intersect(rng{Len: size})
				m.Check("f", data[:size], gone)
				m.Sh(`truncate -s "$1" f`, fmt.Sprint(8*page))
				m.Check("f", harness.Lay(data[:size], make([]byte, 8*page-size), size), gone)
			})
		})
	}
}

func TestTruncateUpPastABadTailPage(t *testing.T) {
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		const size = 2*page + 1000
		data := m.File("f", 1, size)
		bad := rng{Off: 2*page + 128, Len: 1}
		m.Inject("f", bad)
		m.Sh(`truncate -s "$1" f`, fmt.Sprint(6*page))
		m.Check("f", harness.Lay(data, make([]byte, 6*page-size), size), lost(bad))
	})
}

// fallocate -z and -p: what they zero is zero because it was asked for, and no
// longer lost.
func TestFallocateOverPoison(t *testing.T) {
	bad := rng{Off: 5*page + 2048, Len: 1}
	for name, r := range map[string]rng{
		"whole pages":                   {Off: 4 * page, Len: 3 * page},
		"part of the page, beside":      {Off: 5*page + 100, Len: 100},
		"part of the page, over part":   {Off: 5*page + 2048 + 10, Len: 10},
		"part of the page, over all":    {Off: 5*page + 1024, Len: 2048},
		"into the page from before":     {Off: 3*page + 5, Len: 2*page + 2100},
		"from the page to the file end": {Off: 5*page + 2000, Len: 11*page - 2000},
	} {
		for _, mode := range []string{"-z", "-p"} {
			t.Run(mode+" "+name, func(t *testing.T) {
				eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
					data := m.File("f", 1, 16*page)
					m.Inject("f", bad)
					m.Sh(`fallocate "$1" -o "$2" -l "$3" f`, mode, fmt.Sprint(r.Off), fmt.Sprint(r.Len))
					m.Check("f", zeroed(data, r), without(lost(bad), r)...)
					if !notMet(lost, bad, r) {
						m.Cured("f", rng{Len: 16 * page})
					}
				})
			})
		}
	}
}

// The ledger keeps what happened to a range, in order, over remounts.
func TestLedgerHistory(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 4*page)
	bad := rng{Off: page, Len: sector}
	m.Inject("f", bad)
	state := func(want ...string) {
		t.Helper()
		var got []string
		for _, row := range m.History("f") {
			got = append(got, fmt.Sprint(row.Range, " ", row.State))
		}
		if !slices.Equal(got, want) {
			t.Errorf("history %q, want %q", got, want)
		}
	}
	m.Check("f", data, bad)
	state("[4096 +512) lost")
	data = m.Overwrite("f", data, []byte("x"), page+1000) // the page, not the lost bytes
	state("[4096 +512) reinitialized")
	m.Restart()
	m.Check("f", data, bad)
	data = m.Overwrite("f", data, harness.Pattern(5, sector), page)
	m.Check("f", data)
	state("[4096 +512) overwritten")
}

// Reads, and files that nobody writes, leave the backing as it is.
func TestReadingChangesNothingBelow(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 8*page)
	before, err := os.Stat(m.Below("f"))
	if err != nil {
		t.Fatal(err)
	}
	bad := rng{Off: 3 * page, Len: sector}
	m.Inject("f", bad)
	m.Check("f", data, bad)
	m.Stop()
	harness.Compare(t, "the backing file", readFile(t, m.Below("f")), data)
	after, err := os.Stat(m.Below("f"))
	if err != nil {
		t.Fatal(err)
	}
	if !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the modification time went from %v to %v", before.ModTime(), after.ModTime())
	}
}
