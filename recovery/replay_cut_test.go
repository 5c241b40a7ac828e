//go:build failpoints

package recovery

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/media"
)

// TestKillAtReplayOwed: replay dies when it has saved the image of a page that the medium
// refuses, with the intent open.
func TestKillAtReplayOwed(t *testing.T) {
	for _, refusesStill := range []bool{false, true} {
		r := newRig(t, "dax-5.18", 4*pg-100)
		s := script(r)
		r.start()
		bad := rng(pg+1024, 512)
		r.poison(bad, false)
		want := pattern(4*pg - 100)
		copy(want[pg+10:], "new")
		want = without(want, bad)
		if !r.crashAt(failpoint.PagePunching, 1, func() { r.write(pg+10, []byte("new")) }) {
			t.Fatal("no crash")
		}
		s.fullOncePunched()
		r.startEngine()
		if !r.crashAt(failpoint.ReplayOwed, 1, func() { r.check(r.engine.Replay()) }) {
			t.Fatal("replay never came to replay-owed")
		}
		if !refusesStill {
			s.asBelow()
		} else {
			s.pwrite = func(media.File, []byte, int64) (int, error) { return 0, unix.ENOSPC }
		}
		r.start()
		r.wantNoIntents()
		wantBytes(t, "served", r.read(0, int64(len(want))), want)
		wantRecord(r, bad)
		if n := r.journal.Stats().Pending; n != 0 != refusesStill {
			t.Errorf("refuses still: %v: %d images are owed", refusesStill, n)
		}
		s.asBelow()
		r.write(pg, filled(0xee, pg))
		copy(want[pg:], filled(0xee, pg))
		r.remount()
		wantBytes(t, "written again", r.read(0, int64(len(want))), want)
		if st := r.journal.Stats(); st.Pending != 0 || st.Kept != 0 {
			t.Errorf("left in the journal: %+v", st)
		}
	}
}

// TestKillAtReplayKept: replay dies when it has kept the image of a conflict, and has not
// told the ledger.
func TestKillAtReplayKept(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	dieInWrite(r, s, nil, func() { r.write(pg+100, []byte("fresh")) })
	backdate(r, 2*time.Minute, true)
	overwrite(t, r.path(), []byte("other"), pg+3000)
	want := r.below()
	r.startEngine()
	if !r.crashAt(failpoint.ReplayKept, 1, func() { r.check(r.engine.Replay()) }) {
		t.Fatal("replay never came to replay-kept")
	}
	r.start()
	r.wantNoIntents()
	if kept := r.journal.Kept(); len(kept) != 1 || kept[0].Range != rng(pg, pg) || string(kept[0].Image[100:105]) != "fresh" {
		t.Errorf("kept: %+v", kept)
	}
	wantBytes(t, "after replay", r.read(0, 4*pg), want)
	wantRecord(r, bad)
}

// TestReplayNamesTheDiskThatFails: whether it is the backing filesystem or the disk of the
// state directory that keeps a repair from being finished, the error says so.
func TestReplayNamesTheDiskThatFails(t *testing.T) {
	for _, state := range []bool{false, true} {
		r := newRig(t, "dax", 4*pg)
		s := script(r)
		r.start()
		r.poison(rng(pg+1024, 512), false)
		dieInWrite(r, s, nil, func() { r.write(pg+100, []byte("fresh")) })
		backdate(r, 2*time.Minute, true)
		overwrite(t, r.path(), []byte("other"), pg+3000) // a conflict: its image is to be kept
		r.startEngine()
		d := &slowDisk{}
		r.journalOn(d)
		if d.full.Store(state); !state {
			s.sync = func(media.File, bool) error { return unix.EIO }
		}
		err := r.engine.Replay()
		var unfinished *ReplayError
		if !errors.As(err, &unfinished) || unfinished.StateDisk != state || strings.Contains(err.Error(), "state directory") != state {
			t.Errorf("the state disk fails: %v: %v", state, err)
		}
		if state != errors.Is(err, unix.ENOSPC) {
			t.Errorf("the cause is lost: %v", err)
		}
		d.full.Store(false)
		s.asBelow()
		r.check(r.engine.Replay())
		r.open()
	}
}
