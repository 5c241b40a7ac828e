package recovery

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestOutageAtAnyMoment lets the medium fail from any of its calls on, for any
// time: a read gives right bytes or an error, and never calls anything lost
// that is not (P9).
func TestOutageAtAnyMoment(t *testing.T) {
	bad := []ranges.Range{rng(2*pg+128, 64), rng(5*pg, 2*pg), rng(9*pg+64, 64)}
	for _, granularity := range []int64{64, 4096} {
		for _, errno := range []error{unix.EIO, unix.ENODEV} {
			for begin := range 60 {
				outageAt(t, granularity, errno, begin, bad, rand.Uint64())
			}
		}
	}
}

func outageAt(t *testing.T, granularity int64, errno error, begin int, bad []ranges.Range, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	what := fmt.Sprintf("granularity %d, %v from call %d, seed %d", granularity, errno, begin, seed)
	const size = 10 * pg
	r := newRig(t, "", size)
	var m *mediatest.Medium
	r.wrap = func(media.Medium) media.Medium { m = mediatest.New(granularity); return m }
	r.start()
	defer r.stop()
	lost := ranges.Of()
	for _, b := range bad {
		r.check(m.Bad(r.fd, b))
		lost.Add(b.Widen(granularity))
	}
	calls, length := 0, 1+random.IntN(100)
	m.Before(func(mediatest.Op, ranges.Range) error {
		calls++
		if calls > begin && calls <= begin+length {
			return errno
		}
		return nil
	})
	want := without(pattern(size), lost.Slice()...)
	for range 20 {
		off := random.Int64N(size)
		b := make([]byte, 1+random.Int64N(size-off))
		n, err := r.file.Read(b, off, Caller{})
		if err == nil && !bytes.Equal(b[:n], want[off:off+int64(len(b))]) {
			t.Errorf("%s: wrong bytes in [%d +%d)", what, off, len(b))
		}
	}
	got, _ := r.live()
	for l := range got.All() {
		if !lost.Contains(l) {
			t.Errorf("%s: %v was recorded as lost", what, l)
		}
	}
}

// TestNoControl: with nothing to compare with, a page must vouch for itself.
func TestNoControl(t *testing.T) {
	none := fmt.Errorf("alone: %w", media.ErrNoControl)
	tests := []struct {
		name    string
		control error
		page    page
		want    bool
	}{
		{"control works", nil, page{}, true},
		{"control fails", unix.EIO, page{verdict: media.Listed, part: true}, false},
		{"no control, the page is listed", none, page{verdict: media.Listed}, true},
		{"no control, part of the page can be read", none, page{part: true}, true},
		{"no control, nothing vouches", none, page{}, false},
	}
	for _, tt := range tests {
		if got := tt.page.isolatedBy(tt.control); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// FuzzEngine drives the planner and the classifier through random operations
// against the oracle.
func FuzzEngine(f *testing.F) {
	for seed := range uint64(6) {
		f.Add(seed, uint8(seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, profile uint8) {
		runOracle(t, []string{"dax", "dax-5.18", "line"}[profile%3], seed, 40)
	})
}
