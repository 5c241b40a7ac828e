package recovery

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestRefusedPageIsWrittenAgain: media without a list that take a page at the second
// attempt only, or a part of it at the first.
func TestRefusedPageIsWrittenAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		first func(f media.File, b []byte, off int64) (int, error)
	}{
		{"refused", func(media.File, []byte, int64) (int, error) { return 0, unix.EIO }},
		{"a part", func(f media.File, b []byte, off int64) (int, error) { return len(b) / 2, nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, m, s := scriptedForeign(t)
			r.check(m.Bad(r.fd, rng(pg, pg)))
			want := r.read(0, 4*pg)
			writes := 0
			s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
				if writes++; writes == 1 {
					return c.first(f, b, off)
				}
				return f.Pwrite(b, off, 0)
			}
			r.write(pg+100, []byte("part"))
			copy(want[pg+100:], "part")
			if got := r.read(0, 4*pg); !bytes.Equal(got, want) {
				t.Error("the file reads different")
			}
			if left, err := m.Left(r.fd); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// scriptedForeign is a file of four pages on a medium that keeps no list, and loses
// whole pages, with a script in front of it.
func scriptedForeign(t *testing.T) (*rig, *mediatest.Medium, *scripted) {
	t.Helper()
	r, m, s := newRig(t, "", 4*pg), mediatest.New(pg), &scripted{}
	r.wrap = func(media.Medium) media.Medium { s.Medium = m; return s }
	return r.start(), m, s
}

// TestWholePageIsReadBackWithoutAList: where no list says that the poison is gone, a write
// that the medium only says it has done is done again, or is an error.
func TestWholePageIsReadBackWithoutAList(t *testing.T) {
	for _, lies := range []int{1, 1000} {
		r, m, s := scriptedForeign(t)
		r.check(m.Bad(r.fd, rng(pg, pg)))
		want := r.read(0, 4*pg)
		s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
			if lies--; lies >= 0 {
				return len(b), nil
			}
			return f.Pwrite(b, off, 0)
		}
		if lies > 1 {
			r.mustFail(pg, filled('x', pg))
			continue
		}
		r.write(pg, filled('x', pg))
		copy(want[pg:], filled('x', pg))
		if got := r.read(0, 4*pg); !bytes.Equal(got, want) {
			t.Error("the file reads different")
		}
		if left, err := m.Left(r.fd); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// TestZerosOfAnUnfinishedRepairAreRecorded: the page is written and can't be made durable.
// What it holds beside the application's bytes is no content that was found again.
func TestZerosOfAnUnfinishedRepairAreRecorded(t *testing.T) {
	r, m, s := scriptedForeign(t)
	r.check(m.Bad(r.fd, rng(pg, pg)))
	r.read(0, 4*pg)
	s.sync = func(media.File, bool) error { return unix.EIO }
	fresh := rng(pg+1000, 100) // neither begins nor ends with a line
	r.mustFail(fresh.Off, filled('x', int(fresh.Len)))
	r.read(0, 4*pg)
	r.wantRecorded(ranges.Between(pg, fresh.Off))
	r.wantRecorded(ranges.Between(fresh.End(), 2*pg))
	s.asBelow()
	r.write(0, []byte("y")) // finishes it
	r.wantRecorded(ranges.Between(pg, fresh.Off))
	r.wantRecorded(ranges.Between(fresh.End(), 2*pg))
}

func TestFoundAgain(t *testing.T) {
	f := newRig(t, "", pg).start().file
	const line = ranges.LineSize
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	data, zero := func(n int) []byte { return filled('x', n) }, func(n int) []byte { return make([]byte, n) }
	for _, c := range []struct {
		name string
		off  int64
		b    []byte
		zero []ranges.Range
	}{
		{"nothing", 0, nil, nil},
		{"data", 10, data(500), nil},
		{"zeros", 10, zero(500), []ranges.Range{rng(10, 500)}},
		{"zeros within a line", 0, join(data(10), zero(20), data(400)), nil},
		{"zeros over two lines", 0, join(data(20), zero(100), data(400)), nil},
		{"a line of zeros", 0, join(data(60), zero(68), data(4)), []ranges.Range{rng(60, 68)}},
		{"in front", line, join(zero(7), data(64)), []ranges.Range{rng(line, 7)}},
		{"behind", line, join(data(64), zero(1)), []ranges.Range{rng(2*line, 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var zeros []ranges.Range
			end := c.off
			for _, m := range f.foundAgain(c.b, c.off) {
				if m.Range.Off != end {
					t.Fatalf("a gap at %d", end)
				}
				if end = m.Range.End(); m.To == ledger.Reinitialized {
					zeros = append(zeros, m.Range)
				}
			}
			if end != c.off+int64(len(c.b)) || !slices.Equal(zeros, c.zero) {
				t.Errorf("zeros %v up to %d, want %v", zeros, end, c.zero)
			}
		})
	}
}
