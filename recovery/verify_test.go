package recovery

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestVerifyWrites: poison that nobody knew is gone from under a write, the
// bytes written are on the medium, and all else is what was there or is lost and
// on record. Without verifying, the poison stays.
func TestVerifyWrites(t *testing.T) {
	const size = 6*pg + 700
	bad := []ranges.Range{rng(2*pg+1024, 64), rng(4*pg, 64), rng(6*pg+512, 64)}
	shapes := map[string]ranges.Range{
		"the bad line":           rng(2*pg+1024, 64),
		"part of it":             rng(2*pg+1030, 10),
		"the whole page":         rng(2*pg, pg),
		"three pages":            rng(2*pg, 3*pg),
		"unaligned":              rng(2*pg+1000, 2*pg+1000),
		"everything":             rng(0, size),
		"more than everything":   rng(100, 9*pg),
		"the tail up to the end": rng(6*pg, 700),
	}
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		for name, at := range shapes {
			for _, verify := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/verify=%v", profile, name, verify), func(t *testing.T) {
					r := newRig(t, profile, size)
					r.verify = verify
					r.start()
					fresh := bytes.Repeat([]byte{0xab}, int(at.Len))
					hit := ranges.Of()
					want := append(pattern(size), make([]byte, max(0, at.End()-size))...)
					for _, b := range bad {
						r.poison(b, true)
						if b.Overlaps(at) {
							hit.Add(b)
						}
					}
					r.write(at.Off, fresh)
					if !verify {
						if left := r.left(at); profile != "line" && left.Empty() {
							t.Error("the write has cleared latent poison: this test shows nothing")
						}
						return
					}
					if left := r.left(at); !left.Empty() {
						t.Errorf("poison left: %v", left)
					}
					// What of a poisoned sector was not written is lost.
					zeros := ranges.Of()
					for h := range hit.All() {
						if profile == "line" && at.Contains(h) {
							continue // the write has cleared it
						}
						zeros.Add(h.Widen(grain(profile, false)).Intersect(ranges.Between(0, size)))
					}
					zeros.Remove(at)
					want = without(want, zeros.Slice()...)
					copy(want[at.Off:], fresh)
					touched := at.Widen(pg).Intersect(ranges.Between(0, int64(len(want))))
					got := make([]byte, touched.Len)
					if n, err := r.medium.Open(r.fd).Pread(got, touched.Off); err == nil && int64(n) == touched.Len {
						wantBytes(t, "the medium", got, want[touched.Off:touched.End()])
					} else if profile != "line" { // where a line beside the write may be bad
						t.Errorf("the medium: %d, %v", n, err)
					}
					lost, reinit := r.live()
					wantSet(t, "lost", lost)
					wantSet(t, "reinitialized", reinit, zeros.Slice()...)
					if profile != "line" { // which clears a line that is written whole by itself
						if log := r.told(); !hit.Empty() && !strings.Contains(log, `"event":"reinitialized"`) {
							t.Errorf("nobody is told of the repair: %s", log)
						}
					}
				})
			}
		}
	}
}

// left is the poison in r.
func (r *rig) left(at ranges.Range) *ranges.Set {
	left := ranges.Of()
	for _, in := range r.sim.List() {
		for _, p := range in.Remaining {
			if p.Overlaps(at) {
				left.Add(p.Intersect(at))
			}
		}
	}
	return left
}

// TestVerifyWritesOfAMediumThatForgets: it reads back what was there before.
func TestVerifyWritesOfAMediumThatForgets(t *testing.T) {
	for _, hurt := range []bool{false, true} {
		r := newRig(t, "dax", 4*pg)
		r.verify = true
		s := script(r)
		r.start()
		if hurt {
			r.poison(rng(pg, 512), false)
			r.read(0, 4*pg)
		}
		s.pwrite = func(_ media.File, b []byte, _ int64) (int, error) { return len(b), nil }
		for _, off := range []int64{pg, 2 * pg, 2*pg + 100} {
			if n, err := r.file.Write([]byte("gone with the wind"), off, false, Caller{}); n != 0 || Errno(err) != unix.EIO {
				t.Errorf("hurt=%v, write at %d: %d, %v, want EIO", hurt, off, n, err)
			}
		}
		s.asBelow()
		r.write(2*pg, []byte("kept"))
		if !r.engine.Status().VerifyWrites {
			t.Error("status does not say it")
		}
	}
}

// TestVerifyWritesStrictly: the medium's error, and nothing repaired.
func TestVerifyWritesStrictly(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	r.rules, r.verify = "strict", true
	r.start()
	r.poison(rng(pg+512, 64), true)
	if n, err := r.file.Write(pattern(pg), pg, false, Caller{}); n != 0 || Errno(err) != unix.EIO {
		t.Errorf("write: %d, %v, want EIO", n, err)
	}
	r.write(2*pg, pattern(pg))
}

// TestVerifyWritesAtOnce: what another has written meanwhile is no failure.
func TestVerifyWritesAtOnce(t *testing.T) {
	r := newRig(t, "", 64*pg)
	r.verify = true
	r.start()
	b := make([]byte, pg)
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := r.file.Write(b, 0, false, Caller{}); err != nil {
			t.Error(err)
		}
	})
	if allocs >= 1 { // the pool may be emptied once
		t.Errorf("%v allocations a write", allocs)
	}
	var writers sync.WaitGroup
	for n := range 4 {
		writers.Go(func() {
			b := bytes.Repeat([]byte{byte(1 + n)}, 40*pg)
			for range 50 {
				if got, err := r.file.Write(b, int64(n)*pg, n == 3, Caller{}); got != len(b) || err != nil {
					t.Errorf("write: %d, %v", got, err)
				}
			}
		})
	}
	writers.Wait()
}

// TestVerifyWritesOfAFileOpenForWriting: it can't be read back, and is written.
func TestVerifyWritesOfAFileOpenForWriting(t *testing.T) {
	r := newRig(t, "", pg)
	r.verify = true
	r.start()
	fd, err := unix.Open(r.path(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	r.check(err)
	defer unix.Close(fd)
	if n, err := r.engine.Open(r.ino, fd).Write([]byte("x"), 0, false, Caller{}); n != 1 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
}
