package recovery

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/media"
)

// begunEarlier makes all intents in the journal older, and of another boot. What was
// claimed since stays claimed then.
func begunEarlier(r *rig, by time.Duration) {
	r.t.Helper()
	path := filepath.Join(r.state, "journal")
	j, err := journal.View(path)
	r.check(err)
	intents := j.Intents()
	r.check(j.Shutdown())
	if len(intents) == 0 {
		r.t.Fatal("no intent is open")
	}
	r.check(os.Remove(path))
	again, err := journal.Open(path, intents[0].FS)
	r.check(err)
	for _, in := range intents {
		in.Time -= int64(by)
		in.Boot = "another boot"
		r.check(again.Begin(&in))
	}
	r.check(again.Shutdown())
}

// TestPowerCutInALateRepair: a repair could not be made durable. Two minutes later that
// is tried again, which moves the file's ctime, and the power goes: the page is torn, and not
// somebody else's.
func TestPowerCutInALateRepair(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	s.sync = func(media.File, bool) error { return unix.EIO }
	r.mustFail(pg+100, []byte("fresh"))
	for _, u := range r.ino.damage.Load().open {
		for _, m := range u.mends {
			m.intent.Time -= int64(2 * time.Minute)
		}
	}
	s.sync = func(f media.File, _ bool) error {
		if _, err := f.Pwrite(bytes.Repeat([]byte{0xde}, pg), pg, 0); err != nil {
			t.Errorf("tearing the page: %v", err)
		}
		panic(unix.EIO)
	}
	func() {
		defer func() {
			if v := recover(); v != unix.EIO {
				t.Fatalf("the repair was not tried again: %v", v)
			}
		}()
		r.read(pg, 16)
	}()
	s.asBelow()
	r.crash()
	begunEarlier(r, 2*time.Minute)
	r.start()
	want := pattern(4 * pg)
	copy(want[pg+100:], "fresh")
	wantBytes(t, "after replay", r.read(0, 4*pg), without(want, bad))
}
