package recovery

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestImageOfARewrittenPageIsNotServed: the poison was cleared elsewhere, the
// page written, and poison hit it again: a read that serves the first image
// returns bytes that were overwritten, as if nothing were lost.
func TestImageOfARewrittenPageIsNotServed(t *testing.T) {
	for _, remount := range []bool{false, true} {
		t.Run(fmt.Sprintf("remount=%v", remount), func(t *testing.T) {
			r := newRig(t, "dax", 4*pg).start()
			again := rng(pg+2048, 512)
			r.poison(rng(pg+512, 512), false)
			r.read(0, 4*pg)
			r.check(r.sim.Clear())
			r.engine.Recheck()
			if remount {
				r.remount()
			}
			r.read(0, 4*pg)
			r.write(again.Off, filled(0xee, 512))
			r.poison(again, false)
			if remount {
				r.remount()
			}
			wantBytes(t, "after the second poison", r.read(0, 4*pg), without(r.below(), again))
			lost, _ := r.live()
			wantSet(t, "lost", lost, again)
		})
	}
}

// TestImageIsNotKeptOverAWriteDuringTheFirstRead: a page that is written while
// somebody finds it bad must not be served from what was salvaged before, nor
// may a later repair put that back on the media.
func TestImageIsNotKeptOverAWriteDuringTheFirstRead(t *testing.T) {
	for _, tt := range []struct {
		name           string
		pread, salvage int32 // the call of the reader behind which the write comes
	}{
		{"behind the read that fails", 1, 0},
		{"behind the last attempt", 2, 0},
		{"behind the salvage", 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "dax", 4*pg)
			s := script(r)
			r.start()
			r.poison(rng(pg+512, 512), false)
			want := filled(0xee, pg)
			var preads, salvages atomic.Int32
			written := make(chan struct{})
			write := func() {
				if n, err := r.file.Write(want, pg, false, Caller{}); n != pg || err != nil {
					t.Errorf("write = %d, %v", n, err)
				}
			}
			s.pread = func(f media.File, b []byte, off int64) (int, error) {
				n, err := f.Pread(b, off)
				if preads.Add(1) == tt.pread {
					r.meanwhile(written, write)
				}
				return n, err
			}
			s.salvage = func(f media.File, b []byte, off int64) ([]ranges.Range, int64) {
				missing, granularity := f.Salvage(b, off)
				if salvages.Add(1) == tt.salvage {
					r.meanwhile(written, write)
				}
				return missing, granularity
			}
			r.read(pg, pg)
			<-written
			wantBytes(t, "after the write", r.read(pg, pg), want)
			r.write(pg+100, []byte("x"))
			want[100] = 'x'
			wantBytes(t, "on the media", r.below()[pg:2*pg], want)
		})
	}
}

// TestTwoFirstReadersLoseTheLineOnly: the medium names a latent line to the
// first who touches it, and condemns the sector for all others. A second reader
// who comes in between must not give up what the first one has in hand.
func TestTwoFirstReadersLoseTheLineOnly(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	line := rng(pg+1024, 64)
	want := without(pattern(4*pg), line)
	r.poison(line, true)
	var salvages atomic.Int32
	second, got := make(chan struct{}), make([]byte, 4*pg)
	s.salvage = func(f media.File, b []byte, off int64) ([]ranges.Range, int64) {
		missing, granularity := f.Salvage(b, off)
		if salvages.Add(1) == 1 {
			r.meanwhile(second, func() {
				if n, err := r.file.Read(got, 0, Caller{}); n != len(got) || err != nil {
					t.Errorf("the second read = %d, %v", n, err)
				}
			})
		}
		return missing, granularity
	}
	first := r.read(0, 4*pg)
	if salvages.Load() == 0 {
		t.Fatal("nothing was salvaged")
	}
	<-second
	wantBytes(t, "the first reader", first, want)
	wantBytes(t, "the second reader", got, want)
	lost, _ := r.live()
	wantSet(t, "lost", lost, line)
	if n := r.engine.counters.lostBytes.Load(); n != line.Len {
		t.Errorf("%d bytes were given up, want %d", n, line.Len)
	}
}

// TestFirstTouchIsHeldForAllReaders: as above, but both readers have met the line
// before either may settle what it met; whoever settles first must have what the
// first touch gave.
func TestFirstTouchIsHeldForAllReaders(t *testing.T) {
	for range 30 {
		r := newRig(t, "dax", 4*pg)
		s := script(r)
		r.start()
		line := rng(pg+1024, 64)
		want := without(pattern(4*pg), line)
		r.poison(line, true)
		var preads atomic.Int32
		met, second, got := make(chan struct{}), make(chan struct{}), make([]byte, 4*pg)
		s.pread = func(f media.File, b []byte, off int64) (int, error) {
			n, err := f.Pread(b, off)
			switch preads.Add(1) {
			case 2: // the first reader has gone on behind the line
				go func() {
					defer close(second)
					if n, err := r.file.Read(got, 0, Caller{}); n != len(got) || err != nil {
						t.Errorf("the second read = %d, %v", n, err)
					}
				}()
				<-met
			case 3: // the second reader was refused
				close(met)
			}
			return n, err
		}
		first := r.read(0, 4*pg)
		<-second
		wantBytes(t, "the first reader", first, want)
		wantBytes(t, "the second reader", got, want)
		if n := r.engine.counters.lostBytes.Load(); n != line.Len {
			t.Errorf("%d bytes were given up, want %d", n, line.Len)
		}
		r.stop()
	}
}

// TestFrontOfALatentLineIsAskedFor: no byte is given up that the medium was not
// asked for; here, what lies in front of a read that begins inside the page.
func TestFrontOfALatentLineIsAskedFor(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	s.salvage = func(_ media.File, b []byte, off int64) ([]ranges.Range, int64) {
		return []ranges.Range{rng(off, int64(len(b)))}, pg
	}
	line := rng(pg+1024, 64)
	r.poison(line, true)
	wantBytes(t, "the read", r.read(pg+512, 2*pg), without(pattern(4*pg), line)[pg+512:3*pg+512])
	lost, _ := r.live()
	wantSet(t, "lost", lost, line)
}

// TestPendingImageIsNotServedOverTheRepair: the repair of a page owed its image
// was committed, and the crash came before the image was dropped: the next mount
// must not serve it over what the repair wrote.
func TestPendingImageIsNotServedOverTheRepair(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	r.poison(rng(pg+512, 512), false)
	want := r.read(0, 4*pg)
	s.fullOncePunched()
	r.mustFail(pg, []byte("part"))
	s.asBelow()
	fresh := filled(0xee, 100)
	copy(want[pg+100:], fresh)
	if !r.crashAt(failpoint.IntentClosed, 1, func() { r.write(pg+100, fresh) }) {
		t.Fatal("no crash")
	}
	r.start()
	wantBytes(t, "after the crash", r.read(0, 4*pg), want)
}

// TestImageDoesNotOutliveItsRepair: the daemon dies when the repair is closed, or what
// finishes it at the next mount. The image from before must not be taken for what the page
// has held since, when just the bytes that were written are bad later.
func TestImageDoesNotOutliveItsRepair(t *testing.T) {
	sector := rng(1024, ranges.SectorSize)
	for _, c := range []struct {
		written   ranges.Range
		at, again failpoint.Step
	}{
		{sector, failpoint.IntentClosed, ""},
		{sector, failpoint.PagesWritten, ""},
		{sector, failpoint.PagesWritten, failpoint.ReplaySettled},
		{rng(0, pg), failpoint.PagesWritten, ""},
	} {
		t.Run(fmt.Sprintf("%v at %s %s", c.written, c.at, c.again), func(t *testing.T) {
			r := newRig(t, "dax", 2*pg).start()
			r.poison(rng(0, ranges.SectorSize), false)
			r.read(0, pg)
			if !r.crashAt(c.at, 1, func() { r.write(c.written.Off, filled('n', int(c.written.Len))) }) {
				t.Fatal("no crash")
			}
			if c.again != "" {
				r.startEngine()
				if !r.crashAt(c.again, 1, func() { r.check(r.engine.Replay()) }) {
					t.Fatalf("replay never came to %s", c.again)
				}
			}
			r.start()
			r.poison(c.written, false)
			want := without(pattern(2*pg), rng(0, ranges.SectorSize), c.written)
			wantBytes(t, "after the crash", r.read(0, 2*pg), want)
			lost, _ := r.live()
			wantSet(t, "lost", lost, c.written)
		})
	}
}
