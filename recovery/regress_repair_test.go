package recovery

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/media"
)

// TestUnfinishedRepairOutlivesTheInode: the kernel forgets an inode whose repair
// could not be closed. The intent left open would let replay put the old page
// over data that was written and synced since.
func TestUnfinishedRepairOutlivesTheInode(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	r.poison(rng(pg+512, 512), false)
	r.read(0, 4*pg)
	s.sync = func(media.File, bool) error { return unix.EIO }
	r.mustFail(pg, []byte("part"))
	s.asBelow()
	r.check(r.closeFile())
	r.open() // FORGET, and a new lookup
	r.write(pg, filled(0xdd, pg))
	r.check(r.file.Sync(true))
	r.wantNoIntents()
	r.remount()
	wantBytes(t, "synced data", r.read(pg, pg), filled(0xdd, pg))
}

// TestFinishDoesNotCutAnAppend: a repair of the tail page that is finished late
// restores the file's size; what was appended and synced meanwhile must stay.
func TestFinishDoesNotCutAnAppend(t *testing.T) {
	size := 3*pg + 100
	r := newRig(t, "dax", size)
	s := script(r)
	r.start()
	r.poison(rng(3*pg, 64), false)
	r.read(0, int64(size))
	s.sync = func(media.File, bool) error { return unix.EIO }
	r.mustFail(3*pg+10, []byte("x"))
	s.asBelow()
	appended := []byte("acknowledged append")
	r.write(5*pg, appended)
	r.check(r.file.Sync(true))
	r.write(3*pg+80, []byte("y"))
	r.wantSize(5*pg + len(appended))
	wantBytes(t, "the append", r.read(5*pg, int64(len(appended))), appended)
}

// TestFailedAppendLeavesTheSize: a write that returns an error must not leave
// the file longer than it was.
func TestFailedAppendLeavesTheSize(t *testing.T) {
	size := 2*pg + 100
	r, m := foreign(t, size)
	r.check(m.Bad(r.fd, rng(2*pg, 64)))
	r.read(0, int64(size))
	m.Refuse(unix.EFAULT)
	r.mustFail(int64(size), filled(0xee, 2*pg))
	r.wantSize(size)
}

// TestReadOnlyMountKeepsTheTailsIntent: a read-only mount cannot take back what
// the repair added to the file, so the intent has to wait for one that can.
func TestReadOnlyMountKeepsTheTailsIntent(t *testing.T) {
	size := 3*pg + 1000
	r := newRig(t, "dax", size).start()
	r.poison(rng(3*pg, 512), false)
	if !r.crashAt(failpoint.PagesWritten, 1, func() { r.write(3*pg+10, []byte("x")) }) {
		t.Fatal("no crash")
	}
	r.readOnly = true
	r.start()
	r.stop()
	r.readOnly = false
	r.start()
	r.wantSize(size)
	r.wantNoIntents()
}

// TestPunchedPageIsServedWhenItsWriteFails: the punch rung destroyed the page
// and there was no block for the new one. What was salvaged is all that is left
// of it, and must outlive the mount, or be in the ledger.
func TestPunchedPageIsServedWhenItsWriteFails(t *testing.T) {
	r, bad, want := withOwedPage(t)
	r.wantNoIntents()
	wantBytes(t, "in this mount", r.read(0, 4*pg), want)
	r.remount()
	wantBytes(t, "in the next mount", r.read(0, 4*pg), want)
	r.wantRecorded(bad)
}

// TestFailedPunchDoesNotRollBackTheRetry: the write that failed behind a punch
// is tried again with newer data, and synced; nothing may be left that brings
// the older page back.
func TestFailedPunchDoesNotRollBackTheRetry(t *testing.T) {
	r, _, _ := withOwedPage(t)
	r.write(pg, filled(0xdd, pg))
	r.check(r.file.Sync(true))
	r.wantNoIntents()
	r.remount()
	wantBytes(t, "synced data", r.read(pg, pg), filled(0xdd, pg))
}

// TestPunchedPageSurvivesWithoutItsImage: behind a punch neither the page could
// be written nor its image kept. The intent is the last copy, and stays open.
func TestPunchedPageSurvivesWithoutItsImage(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	want := r.read(0, 4*pg)
	s.fullOncePunched()
	r.onStep(func(at failpoint.Step) {
		if at == failpoint.PagePunched {
			r.check(r.journal.Shutdown())
		}
	})
	fresh := []byte("part")
	r.mustFail(pg, fresh)
	r.onStep(nil)
	s.asBelow()
	r.crash()
	r.start()
	copy(want[pg:], fresh) // the intent has it, and a failed write may be there or not
	wantBytes(t, "after replay", r.read(0, 4*pg), want)
	r.wantRecorded(bad)
}

// TestReplayOverAMediumThatWillNotClear: a page that can't be cleared must not
// keep the filesystem from being mounted; its bytes are served all the same.
func TestReplayOverAMediumThatWillNotClear(t *testing.T) {
	r, m := foreign(t, 4*pg)
	bad := rng(pg+128, 64)
	r.check(m.Bad(r.fd, bad))
	m.Refuse(unix.EFAULT)
	fresh := []byte("part")
	if !r.crashAt(failpoint.IntentDurable, 1, func() { r.write(pg, fresh) }) {
		t.Fatal("no crash")
	}
	r.start()
	want := without(pattern(4*pg), bad)
	copy(want[pg:], fresh)
	wantBytes(t, "after replay", r.read(0, 4*pg), want)
	r.wantRecorded(bad)
}

// TestRepairIsDoneWhenTheLedgerHasIt: the ledger closes an intent; a journal
// that fails behind that must not fail a write that is on the media.
func TestRepairIsDoneWhenTheLedgerHasIt(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	want := r.read(0, 4*pg)
	r.onStep(func(at failpoint.Step) {
		if at == failpoint.PagesDurable {
			r.check(r.journal.Shutdown())
		}
	})
	fresh := []byte("part")
	r.write(pg, fresh)
	r.onStep(nil)
	copy(want[pg:], fresh)
	if !bytes.Equal(r.below(), want) {
		t.Error("the acknowledged write is not on the media")
	}
	r.crash()
	r.start()
	wantBytes(t, "after the crash", r.read(0, 4*pg), want)
	r.wantNoIntents()
}

// TestPageThatStaysPoisonedIsWrittenAgain: a store that did not clear the page,
// because no list had it yet, must not leave the file unwritable till a remount.
func TestPageThatStaysPoisonedIsWrittenAgain(t *testing.T) {
	r, m := foreign(t, 4*pg)
	bad := rng(pg+128, 64)
	r.check(m.Bad(r.fd, bad))
	r.onStep(func(at failpoint.Step) {
		if at == failpoint.PagesWritten {
			r.check(m.Bad(r.fd, bad))
		}
	})
	r.write(pg, []byte("part"))
	r.onStep(nil)
	r.write(pg, filled(0xee, pg))
	wantBytes(t, "the page", r.read(pg, pg), filled(0xee, pg))
	r.check(r.file.Truncate(3*pg, Caller{}))
	r.wantNoIntents()
}
