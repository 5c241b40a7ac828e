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
	"github.com/mendfs/mendfs/recovery/ranges"
)

// What is tested here was found by recovery/model (TestGaps; docs/protocol.md).

// backdate makes all intents older, and of another boot if wanted.
func backdate(r *rig, by time.Duration, otherBoot bool) {
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
		punched := in.Punched
		in.Punched = 0
		if otherBoot {
			in.Boot = "another boot"
		}
		r.check(again.Begin(&in))
		if punched != 0 {
			r.check(again.Punching(in.ID, punched-int64(by)))
		}
	}
	r.check(again.Shutdown())
}

// dieInOurHole writes a part of a page, and kills the daemon between the punch of
// the page and its write.
func dieInOurHole(r *rig, s *scripted, off int64, b []byte) {
	r.t.Helper()
	refused := false
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		if len(b) == pg && refused {
			panic("hole")
		}
		refused = len(b) == pg
		return f.Pwrite(b, off, 0)
	}
	func() {
		defer func() {
			if v := recover(); v != "hole" {
				r.t.Fatalf("the page was not punched: %v", v)
			}
		}()
		r.write(off, b)
	}()
	s.asBelow()
	r.crash()
}

// wantRecord fails if zeros of bad have no row.
func wantRecord(r *rig, bad ranges.Range) {
	r.t.Helper()
	if got := r.read(bad.Off, bad.Len); !isZero(got) {
		r.t.Fatal("the lost bytes are there")
	}
	lost, reinit := r.live()
	for piece := range reinit.Within(bad) {
		lost.Add(piece)
	}
	if !lost.Contains(bad) {
		r.t.Errorf("%v is zero and on no record: lost %v, reinitialized %v", bad, lost, reinit)
	}
}

// TestModelConflictKeepsTheRecord: the power goes in a repair, and before the next
// mount, more than a minute later, another program writes a few bytes of the page.
// What the repair left zero is zero still (P5).
func TestModelConflictKeepsTheRecord(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	dieInWrite(r, s, nil, func() { r.write(pg+100, []byte("fresh")) })
	backdate(r, 2*time.Minute, true)
	overwrite(t, r.path(), []byte("other"), pg+3000)
	r.start()
	wantRecord(r, bad)
}

// TestModelConflictInOurHoleKeepsTheRecord: the daemon dies when it has punched the
// page, and another program writes a few bytes there.
func TestModelConflictInOurHoleKeepsTheRecord(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+1024, 512)
	r.poison(bad, false)
	dieInOurHole(r, s, pg+100, []byte("fresh"))
	overwrite(t, r.path(), []byte("other"), pg+3000)
	r.start()
	wantRecord(r, bad)
}

// TestModelConflictKeepsTheSize: as TestModelConflictKeepsTheRecord, in the file's
// last page. The size that the write of a whole page made is seen by nobody (design,
// Tail page).
func TestModelConflictKeepsTheSize(t *testing.T) {
	r := diedInTail(t)
	backdate(r, 2*time.Minute, true)
	overwrite(t, r.path(), []byte("other"), 3*pg+3000)
	r.start()
	r.wantSize(tailed)
}

// TestModelTouchedFileKeepsTheSize: before the next mount, more than a minute later,
// another program changes the mode of the file. The page is as the repair wrote it.
func TestModelTouchedFileKeepsTheSize(t *testing.T) {
	r := diedInTail(t)
	backdate(r, 2*time.Minute, false)
	r.check(os.Chmod(r.path(), 0o600))
	r.start()
	r.wantSize(tailed)
}

// TestModelTouchedFileKeepsOurHole: the same when the daemon died between punch and
// write. What was salvaged of the page is in the journal only (P4).
func TestModelTouchedFileKeepsOurHole(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	r.poison(rng(pg+1024, 512), false)
	dieInOurHole(r, s, pg+100, []byte("fresh"))
	backdate(r, 2*time.Minute, false)
	r.check(os.Chmod(r.path(), 0o600))
	r.start()
	if isZero(r.read(pg, 100)) && len(r.journal.Kept()) == 0 {
		t.Error("salvaged bytes are zero, and their image is gone")
	}
}

// TestModelLateReplayOfTwoPages: the power goes before two pages of a file are
// durable, and replay begins more than a minute later. What it writes to the first
// must not make the second somebody else's.
func TestModelLateReplayOfTwoPages(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := []ranges.Range{rng(pg+512, 512), rng(2*pg+1024, 512)}
	for _, b := range bad {
		r.poison(b, false)
	}
	fresh := bytes.Repeat([]byte{0xab}, 1000)
	want := without(pattern(4*pg), bad...)
	copy(want[2*pg-500:], fresh)
	torn, tear := tornBy(t)
	dieInWrite(r, s, func(f media.File, b []byte, off int64) {
		tear(f, b, off)
		tear(f, b, off+pg)
	}, func() { r.write(2*pg-500, fresh) })
	backdate(r, 2*time.Minute, true)
	early := true // until replay writes, the file was changed last when the intents were made
	r.wrap = func(m media.Medium) media.Medium {
		s.Medium = changedEarly{m, &early}
		return s
	}
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		early = false
		return f.Pwrite(b, off, 0)
	}
	r.start()
	if got := r.read(2*pg, pg); bytes.Equal(got, torn) {
		t.Fatal("the second page is what the medium held between clear and copy")
	}
	wantBytes(t, "after replay", r.read(0, 4*pg), want)
}

// changedEarly says that files were changed two minutes before they were.
type changedEarly struct {
	media.Medium
	on *bool
}

func (m changedEarly) Open(fd int) media.File { return changedEarlyFile{m.Medium.Open(fd), m.on} }

type changedEarlyFile struct {
	media.File
	on *bool
}

func (f changedEarlyFile) Stat() (media.Stat, error) {
	st, err := f.File.Stat()
	if *f.on {
		st.Ctime -= int64(2 * time.Minute)
	}
	return st, err
}

// TestModelPowerCutBehindALateCut: replay, more than a minute after the intent, finds
// the last page of a file as it should be, in memory only, and cuts the file back; then
// the power goes, and takes the page back to what it was between clear and copy.
func TestModelPowerCutBehindALateCut(t *testing.T) {
	const size = 4*pg - 100
	r := newRig(t, "dax", size)
	s := script(r)
	r.start()
	bad := rng(3*pg+512, 512)
	r.poison(bad, false)
	want := pattern(size)
	copy(want[3*pg+100:], "fresh")
	dieInWrite(r, s, nil, func() { r.write(3*pg+100, []byte("fresh")) })
	backdate(r, 50*time.Second, true) // the second replay is after another boot; to the first all boots are the same
	r.startEngine()
	durable := false
	s.sync = func(f media.File, full bool) error {
		st, err := f.Stat()
		if err != nil || st.Size != size {
			durable = true
			return err
		}
		if durable {
			panic(unix.EIO)
		}
		if _, err := f.Pwrite(bytes.Repeat([]byte{0xde}, size-3*pg), 3*pg, 0); err != nil {
			t.Errorf("tearing the page: %v", err)
		}
		panic(unix.EIO)
	}
	func() {
		defer func() {
			if v := recover(); v != unix.EIO {
				t.Fatalf("replay did not cut the file back: %v", v)
			}
		}()
		r.check(r.engine.Replay())
	}()
	s.asBelow()
	r.crash()
	backdate(r, 20*time.Second, false) // what replay did is later than the slack now, unless the intent was renewed
	r.start()
	wantBytes(t, "after the second replay", r.read(0, size), without(want, bad))
}
