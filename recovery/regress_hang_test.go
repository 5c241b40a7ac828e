//go:build failpoints

package recovery

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/media"
)

// TestHungLedgerStopsReads: a repair in the file could not be finished, and now
// the state disk hangs. Reads of good pages of the file must go on.
func TestHungLedgerStopsReads(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	r.poison(rng(pg, pg), false)
	r.read(0, 4*pg)
	s.sync = func(media.File, bool) error { return unix.EIO }
	if _, err := r.file.Write(pattern(pg), pg, false, Caller{}); Errno(err) != unix.EIO {
		t.Fatalf("write: %v, want EIO", err)
	}
	s.asBelow()
	hung := make(chan struct{})
	r.ledger.Points.Set(func(at failpoint.Step) {
		if at == failpoint.LedgerWriting {
			<-hung
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.read(3*pg, 16)
	}()
	select {
	case <-done:
	case <-time.After(4 * time.Second):
		t.Error("a read of a good page waits for the state disk")
	}
	close(hung)
	<-done
	r.ledger.Points.Set(nil)
}

// TestReplayZeroesAPageThatReadsWell: a failure that passed with the reboot. The
// write never came to the page, which has its old content.
func TestReplayZeroesAPageThatReadsWell(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg, pg), false)
	r.read(0, 4*pg)
	if !r.crashAt(failpoint.IntentDurable, 1, func() { r.write(pg, filled('n', pg)) }) {
		t.Fatal("no crash")
	}
	wantBytes(t, "before replay", r.below(), pattern(4*pg))
	r.startEngine()
	r.check(r.sim.Clear())
	r.engine.boot = "another boot"
	r.check(r.engine.Replay())
	r.open()
	if kept := r.journal.Kept(); len(kept) == 0 {
		wantBytes(t, "on the media, and nothing is kept", r.below(), pattern(4*pg))
	}
}

// TestRecheckWhileTheStateDiskFails: the image of a punched page can't be read
// for a moment.
func TestRecheckWhileTheStateDiskFails(t *testing.T) {
	d := &slowDisk{}
	r, want := owedOn(t, d)
	r.open()
	// Saved anew, it is in no cache.
	r.check(r.journal.SaveImage(r.ino.damage.Load().id, "file", imageOf(t, r, pg)))
	d.fail.Store(true)
	r.engine.Recheck()
	b := make([]byte, 4*pg)
	n, err := r.file.Read(b, 0, Caller{})
	d.fail.Store(false)
	t.Logf("read while it fails: %d, %v, zero: %v", n, err, isZero(b[pg:2*pg]))
	wantBytes(t, "afterwards", r.read(0, 4*pg), want)
}

func imageOf(t *testing.T, r *rig, page int64) journal.Image {
	t.Helper()
	im, ok, err := r.journal.Image(r.ino.damage.Load().key, page)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	return im
}
