//go:build failpoints

package recovery

import (
	"testing"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/media"
)

// startAfterACut mounts as after a power cut.
func (r *rig) startAfterACut(boot string) {
	r.t.Helper()
	r.startEngine()
	r.engine.boot = boot
	r.check(r.engine.Replay())
	r.open()
}

// TestWholePageTornByAPowerCut: the intent of a whole page that the application
// writes has no image. What a power cut leaves between clear and copy reads
// without error and is neither the old page nor the new one: the page goes back
// to what was salvaged of it, also if the power goes again meanwhile.
func TestWholePageTornByAPowerCut(t *testing.T) {
	for _, again := range []failpoint.Step{"", failpoint.ReplayWritten, failpoint.ReplaySettled} {
		t.Run("again at "+string(again), func(t *testing.T) {
			r, bad := hurt(t, "dax")
			want := r.read(0, 4*pg-100)
			if !r.crashAt(failpoint.PageCleared, 1, func() { r.write(pg, filled('n', pg)) }) {
				t.Fatal("no crash")
			}
			overwrite(t, r.path(), filled(0xEE, pg), pg)
			if again != "" {
				r.startEngine()
				r.engine.boot = "another boot"
				if !r.crashAt(again, 1, func() { r.check(r.engine.Replay()) }) {
					t.Fatalf("replay never came to %s", again)
				}
			}
			r.startAfterACut("a third boot")
			wantBytes(t, "after the power cut", r.read(0, int64(len(want))), want)
			r.wantRecorded(bad)
			r.wantNoIntents()
		})
	}
}

// TestWholePageOfADeadDaemonStays: no power cut, no garbage: what the dead
// daemon's call has written is kept.
func TestWholePageOfADeadDaemonStays(t *testing.T) {
	r, _ := hurt(t, "dax")
	want := r.read(0, 4*pg-100)
	copy(want[pg:], filled('n', pg))
	if !r.crashAt(failpoint.PageCleared, 1, func() { r.write(pg, filled('n', pg)) }) {
		t.Fatal("no crash")
	}
	r.start()
	wantBytes(t, "after the crash", r.read(0, int64(len(want))), want)
	r.wantNoIntents()
}

// TestReplaySyncsBeforeItForgets: a page that the dead daemon has cleared and
// written may be in nothing but the kernel's memory. Without the intent a power
// cut would leave garbage in it.
func TestReplaySyncsBeforeItForgets(t *testing.T) {
	for _, whole := range []bool{false, true} {
		r, _ := hurt(t, "dax")
		r.read(0, 4*pg-100) // now it is known
		fresh := []byte("part")
		if whole {
			fresh = filled('n', pg)
		}
		if !r.crashAt(failpoint.PagesWritten, 1, func() { r.write(pg, fresh) }) {
			t.Fatal("no crash")
		}
		s := script(r)
		r.startEngine()
		synced := false
		s.sync = func(f media.File, full bool) error {
			synced = true
			return f.Sync(full)
		}
		r.onStep(func(at failpoint.Step) {
			if at == failpoint.ReplaySettled && !synced {
				t.Errorf("whole=%v: the intent is closed, and nothing was synced", whole)
			}
		})
		r.check(r.engine.Replay())
		r.onStep(nil)
		r.open()
		r.wantNoIntents()
	}
}
