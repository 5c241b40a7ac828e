package recovery

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Poison that comes while a write, or a repair, is under way (found by tests/soak
// with many injections into small files): on media that can be cleared nobody
// gets an error for it.

// wantMended fails if poison is left, or a repair is not at its end.
func (r *rig) wantMended() {
	r.t.Helper()
	if left := r.sim.List(); len(left) != 0 {
		r.t.Errorf("poison is left: %v", left)
	}
	r.wantNoIntents()
	if lost, _ := r.live(); !lost.Empty() {
		r.t.Errorf("lost is %v on clean media", lost)
	}
}

// poisonAfterWrites injects behind each of the first times writes of the page at 0
// that go through.
func (r *rig) poisonAfterWrites(s *scripted, at ranges.Range, latent bool, times int) {
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		n, err := f.Pwrite(b, off, 0)
		if times > 0 && err == nil && ranges.Page(at.Off).Overlaps(rng(off, int64(n))) {
			times--
			r.poison(at, latent)
		}
		return n, err
	}
}

// The page is written, and bad again before it is read back, more than once.
func TestPoisonBetweenRepairAndReadBack(t *testing.T) {
	for _, profile := range sim.Profiles() {
		for _, latent := range []bool{false, true} {
			t.Run(profile+map[bool]string{false: " known", true: " latent"}[latent], func(t *testing.T) {
				r := newRig(t, profile, 2*pg)
				s := script(r)
				r.start()
				bad := rng(0, ranges.SectorSize)
				r.poison(bad, false)
				r.read(0, pg)
				r.poisonAfterWrites(s, rng(2*ranges.SectorSize, 1), latent, 3)
				r.write(3000, []byte("new"))
				s.asBelow()
				want := without(pattern(2*pg), bad)
				copy(want[3000:], "new")
				wantBytes(t, "below", r.below(), want)
				wantBytes(t, "read", r.read(0, 2*pg), want)
				r.wantMended()
				_, reinit := r.live()
				wantSet(t, "reinitialized", reinit, bad)
			})
		}
	}
}

// The same for pages that the application writes whole, of which the journal has no
// image (--verify-writes).
func TestPoisonBetweenWholePagesAndReadBack(t *testing.T) {
	for _, profile := range sim.Profiles() {
		t.Run(profile, func(t *testing.T) {
			r := newRig(t, profile, 2*pg)
			r.verify = true
			s := script(r)
			r.start()
			r.poison(rng(0, ranges.SectorSize), false)
			r.read(0, pg)
			r.poisonAfterWrites(s, rng(2*ranges.SectorSize, 1), false, 3)
			r.write(0, filled('n', 2*pg))
			s.asBelow()
			wantBytes(t, "read", r.read(0, 2*pg), filled('n', 2*pg))
			r.wantMended()
		})
	}
}

// The tail page is written whole, and bad again before the file is cut back: no
// part of a page with known poison can be zeroed.
func TestPoisonBeforeTheTailIsCutBack(t *testing.T) {
	const size, tail = pg + 1000, int64(pg)
	for _, profile := range sim.Profiles() {
		t.Run(profile, func(t *testing.T) {
			r := newRig(t, profile, size)
			s := script(r)
			r.start()
			bad := rng(tail, ranges.SectorSize)
			r.poison(bad, false)
			r.read(0, size)
			// The byte before the end: that of "line" must be cut in two as well.
			r.poisonAfterWrites(s, rng(size-1, 1), false, 3)
			r.write(tail+600, []byte("new"))
			s.asBelow()
			want := without(pattern(size), bad)
			copy(want[tail+600:], "new")
			wantBytes(t, "below", r.below(), want)
			wantBytes(t, "read", r.read(0, size), want)
			r.wantMended()
		})
	}
}

// wantWrittenBeside writes a few bytes beside bad as s plays it, and wants those,
// and all others but bad, to be there.
func wantWrittenBeside(r *rig, s *scripted, bad ranges.Range) {
	r.t.Helper()
	const off = 3000
	r.write(off, []byte("new"))
	s.asBelow()
	size := len(r.below())
	want := without(pattern(size), bad)
	copy(want[off:], "new")
	wantBytes(r.t, "read", r.read(0, int64(size)), want)
}

// A refusal has passed when its page is looked at, and then there is poison.
func TestPoisonBetweenTheLookAndTheSecondWrite(t *testing.T) {
	r := newRig(t, "dax", 2*pg)
	s := script(r)
	r.start()
	bad, calls := rng(0, ranges.SectorSize), 0
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		switch calls++; {
		case calls <= 3: // of the clean path, once more with what is known, and with the inode locked
			return 0, unix.EIO
		case calls == 4: // all pages read well
			r.poison(bad, false)
		}
		return f.Pwrite(b, off, 0)
	}
	wantWrittenBeside(r, s, bad)
	r.wantMended()
}

// The edge of a punched range is repaired, and bad again before it is punched.
func TestPoisonBetweenTheEdgesRepairAndThePunch(t *testing.T) {
	for _, profile := range sim.Profiles() {
		t.Run(profile, func(t *testing.T) {
			r := newRig(t, profile, 2*pg)
			s := script(r)
			r.start()
			times := 3
			s.alloc = func(f media.File, mode uint32, off, n int64) error {
				if times > 0 && n < pg {
					times--
					r.poison(rng(90, 20), false)
				}
				return f.Allocate(mode, off, n, 0)
			}
			if err := r.file.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100, 200, Caller{}); err != nil {
				t.Fatal(err)
			}
			s.asBelow()
			r.wantMended()
			if b := r.read(0, pg); !isZero(b[100:300]) {
				t.Errorf("not punched: % x", b[96:304])
			}
		})
	}
}

// A page fails, is on no list yet, and is when it is read again.
func TestPoisonListedAfterTheListWasAsked(t *testing.T) {
	r := newRig(t, "dax", 2*pg)
	s := script(r)
	r.start()
	bad, injected := rng(0, ranges.SectorSize), false
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		switch locked := r.ino.epoch.Load()%2 != 0; {
		case off >= pg || injected:
		case !locked:
			return 0, unix.EIO
		default: // the list was asked
			injected = true
			r.poison(bad, false)
		}
		return f.Pread(b, off)
	}
	wantBytes(t, "read", r.read(0, pg), without(pattern(2 * pg)[:pg], bad))
	lost, _ := r.live()
	wantSet(t, "lost", lost, bad)
}

// A bad page on nobody's list reads well when it is looked at, and then does not.
func TestPoisonBetweenTheLookAndTheSalvage(t *testing.T) {
	r, m := newRig(t, "", 4*pg), mediatest.New(ranges.LineSize)
	s := script(r)
	r.wrap = func(media.Medium) media.Medium { s.Medium = m; return s }
	r.start()
	bad := rng(0, ranges.LineSize)
	r.check(m.Bad(r.fd, bad))
	r.read(0, pg)
	calls := 0
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		if calls++; calls == 1 {
			return unix.Pread(f.Fd(), b, off)
		}
		return f.Pread(b, off)
	}
	wantWrittenBeside(r, s, bad)
	r.wantNoIntents()
}

// What was written could not be read back, its pages can be, and then there is
// poison (--verify-writes).
func TestPoisonBetweenTheLookAndTheSecondReadBack(t *testing.T) {
	r := newRig(t, "dax", 2*pg)
	r.verify = true
	s := script(r)
	r.start()
	calls := 0
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		switch calls++; calls {
		case 1, 3: // read back on the clean path, and with the inode locked
			return 0, unix.EIO
		case 5: // 2 and 4 were looks at the page
			r.poison(rng(0, ranges.SectorSize), false)
		}
		return f.Pread(b, off)
	}
	r.write(0, filled('n', pg))
	s.asBelow()
	wantBytes(t, "read", r.read(0, pg), filled('n', pg))
	r.wantMended()
}

// Poison comes again and again: the repair ends, is told of, and is finished later.
func TestPoisonWithoutEndEndsTheRepair(t *testing.T) {
	for _, profile := range sim.Profiles() {
		t.Run(profile, func(t *testing.T) {
			r := newRig(t, profile, 2*pg)
			s := script(r)
			r.start()
			bad := rng(0, ranges.SectorSize)
			r.poison(bad, false)
			r.read(0, pg)
			r.poisonAfterWrites(s, rng(2*ranges.SectorSize, 1), false, 1<<30)
			_, err := r.file.Write([]byte("new"), 3000, false, Caller{})
			var failed *RepairError
			if !errors.As(err, &failed) || failed.Step != "read-back" {
				t.Fatalf("%v, want a repair that failed at read-back", err)
			}
			s.asBelow()
			r.write(pg, []byte("next"))
			want := without(pattern(2*pg), bad)
			copy(want[3000:], "new")
			copy(want[pg:], "next")
			wantBytes(t, "read", r.read(0, 2*pg), want)
			r.wantMended()
			if told := r.told(); !strings.Contains(told, `"repair-failed"`) || !strings.Contains(told, `"action":"read-back"`) {
				t.Errorf("nobody was told:\n%s", told)
			}
		})
	}
}
