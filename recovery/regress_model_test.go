package recovery

import (
	"bytes"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
)

// What is tested here was found by recovery/model (docs/protocol.md), and is mended: TestEveryStepIsNeeded takes the mends away again.

// dieInWrite runs fn, and kills the daemon in the first write of a whole page,
// which is done by instead; nil: as asked for.
func dieInWrite(r *rig, s *scripted, instead func(f media.File, b []byte, off int64), fn func()) {
	r.t.Helper()
	type death struct{}
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		if len(b) != pg {
			return f.Pwrite(b, off, 0)
		}
		if instead == nil {
			if n, err := f.Pwrite(b, off, 0); n != pg || err != nil {
				r.t.Errorf("writing the page: %d, %v", n, err)
			}
		} else {
			instead(f, b, off)
		}
		panic(death{})
	}
	died := false
	func() {
		defer func() {
			v := recover()
			if _, died = v.(death); v != nil && !died {
				panic(v)
			}
		}()
		fn()
	}()
	if !died {
		r.t.Fatal("no page was written")
	}
	s.asBelow()
	r.crash()
}

// tailed is the size of a file whose last page is cut.
const tailed = 4*pg - 100

// diedInTail is a file of that size; the daemon died in the write of its last
// page, which repairs it.
func diedInTail(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, "dax", tailed)
	s := script(r)
	r.start()
	r.poison(rng(3*pg+512, 512), false)
	dieInWrite(r, s, nil, func() { r.write(3*pg+100, []byte("fresh")) })
	return r
}

// tornBy is a page write that the power interrupts between clear and copy.
func tornBy(t *testing.T) (torn []byte, write func(f media.File, b []byte, off int64)) {
	torn = bytes.Repeat([]byte{0xde}, pg)
	return torn, func(f media.File, _ []byte, off int64) {
		if n, err := f.Pwrite(torn, off, 0); n != pg || err != nil {
			t.Errorf("tearing the page: %d, %v", n, err)
		}
	}
}

// TestModelNewerDataKeepsTheRecord: another program writes a few bytes of a page
// that was repaired, before the next mount. The zeros that the repair left there
// are still zeros of ours (P5).
func TestModelNewerDataKeepsTheRecord(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	dieInWrite(r, s, nil, func() { r.write(pg+100, []byte("fresh")) })
	overwrite(t, r.path(), []byte("other"), pg+3000)
	r.start()
	if got := r.read(bad.Off, bad.Len); !isZero(got) {
		t.Fatal("the lost bytes are there")
	}
	_, reinit := r.live()
	wantSet(t, "zeros with a record", reinit, bad)
}

// TestModelNewerDataKeepsTheSize: the same where the page is the file's last. The
// size that the write of a whole page made is not seen by anybody (design, Tail
// page).
func TestModelNewerDataKeepsTheSize(t *testing.T) {
	r := diedInTail(t)
	overwrite(t, r.path(), []byte("other"), 3*pg+3000)
	r.start()
	r.wantSize(tailed)
}

// TestModelNewerDataInOurHole: another program writes a few bytes of a page that
// our punch freed. What was salvaged of it is in the journal only.
func TestModelNewerDataInOurHole(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	dieInOurHole(r, s, pg+100, []byte("fresh"))
	overwrite(t, r.path(), []byte("other"), pg+3000)
	r.start()
	lost, reinit := r.live()
	if got := r.read(pg, 100); isZero(got) && len(r.journal.Kept()) == 0 && !lost.Overlaps(rng(pg, 100)) && !reinit.Overlaps(rng(pg, 100)) {
		t.Error("salvaged bytes are zero, on no record, and their image is gone")
	}
}

// TestModelPowerCutInALateReplay: the power goes while replay writes the page,
// more than a minute after the intent was made. The page is torn by replay's own
// write, and the next replay must finish it.
func TestModelPowerCutInALateReplay(t *testing.T) {
	for _, ago := range []time.Duration{0, -2 * time.Minute} {
		r := newRig(t, "dax", 4*pg)
		s := script(r)
		r.start()
		bad := rng(pg+1024, 512)
		r.poison(bad, false)
		want := pattern(4 * pg)
		copy(want[pg+100:], "fresh")
		dieInWrite(r, s, func(media.File, []byte, int64) {}, func() { r.write(pg+100, []byte("fresh")) })
		otherBoot(r, ago)
		_, tear := tornBy(t)
		r.startEngine()
		dieInWrite(r, s, tear, func() { r.check(r.engine.Replay()) })
		r.start()
		wantBytes(t, "intent made "+ago.String()+" ago, two power cuts", r.read(0, 4*pg), without(want, bad))
	}
}

// TestModelPowerCutInAWholePageWrite: what a write was to replace is there, or
// what it wrote; but not what the medium held between clear and copy (P4).
func TestModelPowerCutInAWholePageWrite(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	before := without(r.read(0, 4*pg), bad)
	torn, tear := tornBy(t)
	dieInWrite(r, s, tear, func() { r.write(pg, bytes.Repeat([]byte{0xab}, pg)) })
	otherBoot(r, 0)
	r.start()
	if got := r.read(pg, pg); bytes.Equal(got, torn) {
		t.Errorf("the page reads %#x, was %#x, and %#x was being written", got[0], before[pg], 0xab)
	}
}

// TestModelKilledWholePageWriteIsNotHealed: nobody put the lost content back; the
// application wrote anew.
func TestModelKilledWholePageWriteIsNotHealed(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	r.read(0, 4*pg)
	r.check(r.ledger.Flush())
	dieInWrite(r, s, nil, func() { r.write(pg, bytes.Repeat([]byte{0xab}, pg)) })
	r.start()
	r.read(0, 4*pg)
	for row, err := range r.ledger.All(true) {
		r.check(err)
		if row.State != ledger.Overwritten {
			t.Errorf("%v is %s, want overwritten", row.Range, row.State)
		}
	}
}

// TestModelOverwrittenRowOutlivesTheData: the row of lost bytes says overwritten
// on disk, and then a power cut takes back the write, which nobody synced. The
// zeros are there again, and must have a record (P5).
func TestModelOverwrittenRowOutlivesTheData(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	r.write(pg+100, []byte("part"))
	r.check(r.file.Sync(true))
	durable := r.below()
	synced := false
	r.file.below = syncSeen{r.file.below, &synced}
	r.write(bad.Off, bytes.Repeat([]byte{0xab}, int(bad.Len)))
	r.check(r.ledger.Flush()) // as it does by itself within a second
	r.crash()
	if !synced { // otherwise the power can't take it back
		overwrite(t, r.path(), durable, 0)
	}
	r.start()
	if lost, reinit := r.live(); isZero(r.read(bad.Off, bad.Len)) && !lost.Overlaps(bad) && !reinit.Contains(bad) {
		t.Errorf("%v is zero and on no record", bad)
	}
}

// syncSeen notes that data was made durable.
type syncSeen struct {
	media.File
	seen *bool
}

func (f syncSeen) Sync(full bool) error {
	*f.seen = true
	return f.File.Sync(full)
}
