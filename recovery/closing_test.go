//go:build failpoints

package recovery

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
)

// overwritten is a rig whose page 1, bad, was just overwritten whole: the ledger's disk
// has not heard of it, and the intent is open there.
func overwritten(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg+512, 512), false)
	r.read(0, 4*pg)
	r.check(r.ledger.Flush())
	before := r.stored()
	r.write(pg, filled('n', pg))
	if !bytes.Equal(r.stored(), before) {
		t.Fatal("a page that was overwritten whole has waited for the ledger's disk")
	}
	return r
}

// TestDeathBeforeTheEndOfAnOverwrite: the daemon dies, or the power goes, while the
// repair's end is not on disk.
func TestDeathBeforeTheEndOfAnOverwrite(t *testing.T) {
	for _, boot := range []string{"", "another boot"} {
		t.Run("boot "+boot, func(t *testing.T) {
			r := overwritten(t)
			want := pattern(4 * pg)
			copy(want[pg:], filled('n', pg))
			r.crash()
			r.startAfterACut(boot)
			wantBytes(t, "after the crash", r.read(0, 4*pg), want)
			r.wantMended()
			for row, err := range r.ledger.All(true) {
				r.check(err)
				if row.State != ledger.Overwritten {
					t.Errorf("%v is %v", row.Range, row.State)
				}
			}
		})
	}
}

// TestPageIsNotChangedBeforeItsIntentIsClosed: whoever changes a page of which the
// repair has no end on disk yet waits for that. Otherwise replay would take what
// it finds for what a power cut has torn.
func TestPageIsNotChangedBeforeItsIntentIsClosed(t *testing.T) {
	newer := filled('m', 100)
	write := func(r *rig) { r.write(pg+50, newer) }
	for name, change := range map[string]func(r *rig){
		"write": write,
		"write by a later open": func(r *rig) {
			r.check(r.closeFile())
			r.open()
			write(r)
		},
		"write by a mapping": func(r *rig) {
			page := filled('n', pg)
			copy(page[50:], newer)
			if n, err := r.file.Write(page, pg, true, Caller{}); n != pg || err != nil {
				r.t.Fatalf("writeback: %d, %v", n, err)
			}
		},
		"repair": func(r *rig) {
			r.poison(rng(pg+1024, 512), false)
			write(r)
		},
		"share": func(r *rig) {
			defer r.ino.Share()()
			if _, err := unix.Pwrite(r.fd, newer, pg+50); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := overwritten(t)
			want := pattern(4 * pg)
			copy(want[pg:], filled('n', pg))
			copy(want[pg+50:], newer)
			change(r)
			r.crash()
			r.startAfterACut("another boot")
			got, err := os.ReadFile(r.path())
			r.check(err)
			if name != "repair" {
				r.wantMended()
				wantBytes(t, "after the power cut", got, want)
				return
			}
			clear(want[pg+1024:][:512]) // lost, once more
			wantBytes(t, "after the power cut", r.read(0, 4*pg), want)
			r.wantRecorded(rng(pg+1024, 512))
		})
	}
}

// TestPageIsNotCutOffBeforeItsIntentIsClosed is the same for truncate and back.
func TestPageIsNotCutOffBeforeItsIntentIsClosed(t *testing.T) {
	r := overwritten(t)
	want := make([]byte, 4*pg)
	copy(want, pattern(4 * pg)[:pg])
	copy(want[pg:], filled('n', 50))
	r.check(r.file.Truncate(pg+50, Caller{}))
	r.check(r.file.Truncate(4*pg, Caller{}))
	r.crash()
	r.startAfterACut("another boot")
	wantBytes(t, "after the power cut", r.read(0, 4*pg), want)
	r.wantMended()
}

// TestManyOverwritesEndTogether: of many repairs the ends go to disk a lot at a time,
// and none is left at the end.
func TestManyOverwritesEndTogether(t *testing.T) {
	const pages = 4 * closeMany
	r := newRig(t, "dax", pages*pg).start()
	r.poison(rng(0, pages*pg), false)
	r.read(0, pages*pg)
	r.check(r.ledger.Flush())
	for off := int64(0); off < pages*pg; off += pg {
		r.write(off, filled('n', pg))
		if n := r.engine.closings.n.Load(); n > closeMost {
			t.Fatalf("%d intents wait", n)
		}
	}
	r.engine.enders.end()
	if n := r.engine.closings.n.Load(); n >= pages {
		t.Errorf("%d intents wait: nobody has ended any", n)
	}
	r.remount()
	wantBytes(t, "after the mount", r.read(0, pages*pg), filled('n', pages*pg))
	r.wantMended()
}

// TestEndsOfRepairsAreBounded: the ledger's disk hangs. Overwrites go on until so many
// ends wait, and no further.
func TestEndsOfRepairsAreBounded(t *testing.T) {
	const pages = closeMost + 1
	r := newRig(t, "dax", pages*pg).start()
	r.poison(rng(0, pages*pg), false)
	r.read(0, pages*pg)
	r.check(r.ledger.Flush())
	goOn := make(chan struct{})
	r.ledger.Points.Set(func(at failpoint.Step) {
		if at == failpoint.LedgerWriting {
			<-goOn
		}
	})
	for off := int64(0); off < closeMost*pg; off += pg {
		r.write(off, filled('n', pg))
	}
	last := make(chan struct{})
	go func() { // ends when the disk goes on
		defer close(last)
		r.write(closeMost*pg, filled('n', pg))
	}()
	select {
	case <-last:
		t.Error("one more did not wait for the disk")
	default:
	}
	if n := r.engine.closings.n.Load(); n != closeMost {
		t.Errorf("%d intents wait, want %d", n, closeMost)
	}
	close(goOn)
	<-last
	r.ledger.Points.Set(nil)
	r.remount()
	wantBytes(t, "in the end", r.read(0, pages*pg), filled('n', pages*pg))
	r.wantMended()
}

// TestDeathAfterACopyOfZerosOverABadPage: the intent of the page knows which bytes are
// no data, but stand for lost ones.
func TestDeathAfterACopyOfZerosOverABadPage(t *testing.T) {
	for _, at := range []failpoint.Step{failpoint.PagesWritten, failpoint.PagesDurable, failpoint.IntentClosed} {
		t.Run(string(at), func(t *testing.T) {
			r, dst, id, lost := lossAndBadCopy(t)
			if !r.crashAt(at, 1, func() { _, _ = Copy(dst, 0, r.file, 0, 4*pg, Caller{}) }) {
				t.Fatal("no crash")
			}
			r.start()
			r.wantCopyRecorded(id, lost)
		})
	}
}

// TestPowerCutWithinARepairOfAPageThatWaits: a page that was just overwritten whole is
// bad again, and is repaired for its own sake.
func TestPowerCutWithinARepairOfAPageThatWaits(t *testing.T) {
	r := overwritten(t)
	want := pattern(4 * pg)
	copy(want[pg:], filled('n', pg))
	clear(want[pg+1024:][:512])
	r.poison(rng(pg+1024, 512), false)
	if !r.crashAt(failpoint.PagesWritten, 1, func() {
		r.ino.lock()
		defer r.ino.unlock()
		r.check(r.file.mendPage(r.ino.damage.Load(), rng(pg, pg), 4*pg, Caller{}))
	}) {
		t.Fatal("no crash")
	}
	r.startAfterACut("another boot")
	wantBytes(t, "after the power cut", r.read(0, 4*pg), want)
	r.wantRecorded(rng(pg+1024, 512))
}

// TestPowerCutAfterARefusedPageIsWrittenAgain: of an overwrite of three pages the medium
// has refused the second. The intent of all three waits; the page is written again.
func TestPowerCutAfterARefusedPageIsWrittenAgain(t *testing.T) {
	r, m, s := scriptedForeign(t)
	r.check(m.Bad(r.fd, rng(pg, 3*pg)))
	want := r.read(0, 4*pg)
	r.check(r.ledger.Flush())
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		if rng(off, int64(len(b))).Overlaps(rng(2*pg, pg)) {
			return 0, unix.EIO
		}
		return f.Pwrite(b, off, 0)
	}
	if n, err := r.file.Write(filled('n', 3*pg), pg, false, Caller{}); n != pg {
		t.Fatalf("the write: %d, %v", n, err)
	}
	s.pwrite = nil
	r.write(2*pg, filled('m', pg))
	copy(want[pg:], filled('n', pg))
	copy(want[2*pg:], filled('m', pg))
	r.crash()
	r.startAfterACut("another boot")
	wantBytes(t, "after the power cut", r.read(0, 4*pg), want)
}
