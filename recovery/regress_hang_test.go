//go:build failpoints

package recovery

import (
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
)

// TestHungLedgerStopsReads: a repair in the file could not be finished, and now
// the state disk hangs. Reads of good pages of the file must go on.
func TestHungLedgerStopsReads(t *testing.T) {
	r := withOpenRepair(t)
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

// TestHungLedgerAndSyncOfOtherFiles: rows of one file wait for a state disk that
// hangs. fsync of another, whose rows are on disk, must not.
func TestHungLedgerAndSyncOfOtherFiles(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg+512, 512), false)
	r.read(0, 4*pg)
	r.check(r.file.Sync(true))
	other := r.another("other", pattern(pg))
	hung, writing := make(chan struct{}), make(chan struct{}, 9)
	r.ledger.Points.Set(func(at failpoint.Step) {
		if at == failpoint.LedgerWriting {
			writing <- struct{}{}
			<-hung
		}
	})
	d, err := other.know()
	r.check(err)
	r.check(r.ledger.Record(ledger.Change{Lost: []ledger.Loss{{File: d.id, Range: rng(0, 64)}}}))
	<-writing
	done := make(chan error)
	go func() { done <- r.file.Sync(true) }()
	select {
	case err := <-done:
		r.check(err)
	case <-time.After(20 * time.Second):
		t.Error("fsync waits for the rows of another file")
		defer func() { r.check(<-done) }()
	}
	close(hung)
	r.ledger.Points.Set(nil)
}
