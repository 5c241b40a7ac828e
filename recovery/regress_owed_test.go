//go:build failpoints

package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// unlisted is a medium whose list says nothing until it is told to.
type unlisted struct {
	media.Medium
	listed *atomic.Bool
}

func (u unlisted) Open(fd int) media.File { return unlistedFile{u.Medium.Open(fd), u.listed} }

type unlistedFile struct {
	media.File
	listed *atomic.Bool
}

func (f unlistedFile) Corroborate(r ranges.Range) media.Verdict {
	if !f.listed.Load() {
		return media.Unknown
	}
	return f.File.Corroborate(r)
}

// TestPunchedPageOfASharedFile: the page that is owed is a hole of ours; a
// read while the file is shared must not take the hole's zeros for the page.
func TestPunchedPageOfASharedFile(t *testing.T) {
	r, _, want := withOwedPage(t)
	wantBytes(t, "before", r.read(0, 4*pg), want)
	unshare := r.ino.Share()
	got := r.read(0, 4*pg)
	unshare()
	if fmt.Sprintf("%x", got) != fmt.Sprintf("%x", want) {
		t.Errorf("while shared: page 1 starts with % x, want % x", got[pg:pg+8], want[pg:pg+8])
	}
	wantBytes(t, "afterwards", r.read(0, 4*pg), want)
}

// TestPunchedPageThatWasUnsure: the page was on nobody's list when it was met
// first, and is when it is punched.
func TestPunchedPageThatWasUnsure(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	inner, listed := r.wrap, &atomic.Bool{}
	r.wrap = func(m media.Medium) media.Medium { return unlisted{inner(m), listed} }
	r.start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	want := r.read(0, 4*pg)
	listed.Store(true)
	s.fullOncePunched()
	r.mustFail(pg, filled(0xee, pg))
	s.asBelow()
	wantBytes(t, "afterwards", r.read(0, 4*pg), want)
}

// TestTornPageOwed: replay finds a page torn and can't write it (no space on
// a copy-on-write filesystem). The image must outlive the next mount too.
func TestTornPageOwed(t *testing.T) {
	r, _ := hurt(t, "dax")
	want := r.read(0, 4*pg-100)
	if !r.crashAt(failpoint.PageCleared, 1, func() { r.write(pg, []byte("part")) }) {
		t.Fatal("no crash")
	}
	copy(want[pg:], "part")
	overwrite(t, r.path(), filled(0xEE, pg), pg)
	s := script(r)
	r.startEngine()
	r.engine.boot = "another boot"
	s.pwrite = func(media.File, []byte, int64) (int, error) { return 0, unix.ENOSPC }
	r.check(r.engine.Replay())
	r.open()
	wantBytes(t, "in this mount", r.read(0, int64(len(want))), want)
	r.stop()
	s.asBelow()
	r.startAfterACut("another boot")
	wantBytes(t, "in the next mount", r.read(0, int64(len(want))), want)
}

// TestOwedRollbackOverNewerData: as above for a whole page: its intent stays
// open. The application writes the page, with success, and syncs it; the machine
// boots again within a minute.
func TestOwedRollbackOverNewerData(t *testing.T) {
	r, _ := hurt(t, "dax")
	want := r.read(0, 4*pg-100)
	if !r.crashAt(failpoint.PageCleared, 1, func() { r.write(pg, filled('n', pg)) }) {
		t.Fatal("no crash")
	}
	overwrite(t, r.path(), filled(0xEE, pg), pg)
	s := script(r)
	r.startEngine()
	r.engine.boot = "another boot"
	s.pwrite = func(media.File, []byte, int64) (int, error) { return 0, unix.ENOSPC }
	r.check(r.engine.Replay())
	s.asBelow()
	r.open()
	r.write(pg, filled('m', pg))
	r.check(r.file.Sync(true))
	copy(want[pg:], filled('m', pg))
	wantBytes(t, "in this mount", r.read(0, int64(len(want))), want)
	r.stop()
	r.startAfterACut("a third boot")
	wantBytes(t, "synced data after the next boot", r.read(0, int64(len(want))), want)
}

// lossAndBadCopy is a rig with lost bytes, known, and a second file that is bad in the same
// place, known too: lost is to be copied there.
func lossAndBadCopy(t *testing.T) (r *rig, dst *File, id fileid.ID, lost ranges.Range) {
	t.Helper()
	r = newRig(t, "dax", 4*pg).start()
	dst = r.another("copy", filled(0xee, 4*pg))
	id, err := fileid.Of(dst.below.Fd())
	r.check(err)
	lost = rng(pg+512, 512)
	r.poison(lost, false)
	_, err = r.sim.Inject(id, "copy", dst.below.Fd(), lost, false)
	r.check(err)
	r.read(0, 4*pg)
	if _, err := dst.Read(make([]byte, 4*pg), 0, Caller{}); err != nil {
		t.Fatal(err)
	}
	return r, dst, id, lost
}

// wantCopyRecorded checks that the ledger has the zeros that were copied.
func (r *rig) wantCopyRecorded(id fileid.ID, zeros ranges.Range) {
	r.t.Helper()
	lost, reinit, err := r.ledger.Live(id.Key())
	r.check(err)
	if !lost.Contains(zeros) && !reinit.Contains(zeros) {
		r.t.Errorf("%v of the copy is zero for lost bytes, and the ledger has lost %v, reinit %v", zeros, lost, reinit)
	}
}

// TestCopiedZerosOverABadPage: zeros that stand for lost bytes are copied onto
// a page that is bad itself; the daemon dies just behind the copy.
func TestCopiedZerosOverABadPage(t *testing.T) {
	r, dst, id, lost := lossAndBadCopy(t)
	if n, err := Copy(dst, 0, r.file, 0, 4*pg, Caller{}); n != 4*pg || err != nil {
		t.Fatalf("copy: %d, %v", n, err)
	}
	r.crash()
	r.start()
	b, err := os.ReadFile(filepath.Join(r.backing, "copy"))
	r.check(err)
	if !isZero(b[lost.Off:lost.End()]) {
		t.Fatal("not zero")
	}
	r.wantCopyRecorded(id, lost)
}

// TestReadOnlyMountRecordsWhatItServes: the rows of the loss were not durable
// when the daemon died; the intent has them.
func TestReadOnlyMountRecordsWhatItServes(t *testing.T) {
	r, bad := hurt(t, "dax")
	if !r.crashAt(failpoint.IntentDurable, 1, func() { r.write(pg, []byte("part")) }) {
		t.Fatal("no crash")
	}
	r.readOnly = true
	r.start()
	got := r.read(0, 4*pg-100)
	if !isZero(got[bad.Off:bad.End()]) {
		t.Fatal("not zero")
	}
	r.wantRecorded(bad)
}

// TestReadOnlyMountOfATornPageAllLost: nothing was salvaged of a page, and what
// there is of it now is neither old nor new.
func TestReadOnlyMountOfATornPageAllLost(t *testing.T) {
	r, _ := hurt(t, "dax")
	bad := rng(2*pg, pg)
	r.poison(bad, false)
	r.read(0, 4*pg-100)
	if !r.crashAt(failpoint.PageCleared, 1, func() { r.write(bad.Off, filled('n', pg)) }) {
		t.Fatal("no crash")
	}
	overwrite(t, r.path(), filled(0xEE, pg), bad.Off)
	r.readOnly = true
	r.startAfterACut("another boot")
	got := r.read(bad.Off, pg)
	if !isZero(got) {
		t.Errorf("served: % x ...", got[:8])
	}
	r.wantRecorded(bad)
}

// TestMtimeIsNotSetBack: a repair of ours could not be finished; the application
// has written elsewhere in the file since.
func TestMtimeIsNotSetBack(t *testing.T) {
	for _, dies := range []bool{false, true} {
		t.Run(fmt.Sprintf("dies=%v", dies), func(t *testing.T) {
			r := newRig(t, "dax", 4*pg)
			s := script(r)
			r.start()
			r.poison(rng(pg+512, 512), false)
			r.read(0, 4*pg)
			s.sync = func(media.File, bool) error { return unix.EIO }
			if err := r.file.Truncate(pg+2048, Caller{}); err == nil {
				t.Fatal("truncate worked")
			}
			s.asBelow()
			time.Sleep(20 * time.Millisecond)
			r.write(0, []byte("newer"))
			st, err := r.file.below.Stat()
			r.check(err)
			if dies {
				r.crash()
				r.start()
			} else {
				r.read(0, 16)
			}
			after, err := r.file.below.Stat()
			r.check(err)
			if after.Mtime < st.Mtime {
				t.Errorf("mtime went back by %v", time.Duration(st.Mtime-after.Mtime))
			}
		})
	}
}

// slowDisk is a state disk whose reads can be made to hang or to fail.
type slowDisk struct {
	hang chan struct{} // reads wait for it to be closed
	on   atomic.Bool
	fail atomic.Bool
	full atomic.Bool // nothing can be written
	met  chan struct{}
}

func (d *slowDisk) Open(path string, write bool) (journal.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	return slowFile{f, d}, err
}

func (d *slowDisk) Create(path string) (journal.File, error) {
	f, err := os.Create(path)
	return slowFile{f, d}, err
}
func (d *slowDisk) Rename(from, to string) error   { return os.Rename(from, to) }
func (d *slowDisk) Link(path, second string) error { return os.Link(path, second) }
func (d *slowDisk) Remove(path string) error       { return os.Remove(path) }

type slowFile struct {
	*os.File
	d *slowDisk
}

func (f slowFile) ReadAt(b []byte, off int64) (int, error) {
	if f.d.fail.Load() {
		return 0, unix.EIO
	}
	if f.d.on.Load() {
		select {
		case f.d.met <- struct{}{}:
		default:
		}
		<-f.d.hang
	}
	return f.File.ReadAt(b, off)
}
func (f slowFile) WriteAt(b []byte, off int64) (int, error) {
	if f.d.full.Load() {
		return 0, unix.ENOSPC
	}
	return f.File.WriteAt(b, off)
}
func (f slowFile) Size() (int64, error) { st, err := f.Stat(); return st.Size(), err }
func (f slowFile) Allocate(off, n int64) error {
	return f.Truncate(off + n)
}
func (f slowFile) Datasync() error { return f.Sync() }

func (r *rig) journalOn(d *slowDisk) {
	r.check(r.journal.Shutdown())
	j, err := journal.OpenOn(d, filepath.Join(r.state, "journal"), r.engine.FS)
	r.check(err)
	r.journal, r.engine.Journal = j, j
}

// TestHungStateDiskStopsLookups: one reader of a bad page waits for the state
// disk. Files of which nothing is known must still be looked up.
func TestHungStateDiskStopsLookups(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg+512, 512), false)
	r.read(0, 4*pg)
	clean := r.another("other", filled(0xee, 4*pg)).below.Fd()
	r.stop()
	d := &slowDisk{hang: make(chan struct{}), met: make(chan struct{}, 1)}
	r.startEngine()
	r.journalOn(d)
	r.check(r.engine.Replay())
	r.open()
	id, err := fileid.Of(clean)
	r.check(err)
	d.on.Store(true)
	done := make(chan struct{}, 3)
	go func() { // mendfs lost --pending, or a first read of a bad page
		for range r.journal.Images(false) {
		}
		done <- struct{}{}
	}()
	<-d.met
	go func() { // new loss in another file, say: writes go to the page cache
		_ = r.journal.SaveImage(id, "other", journal.Image{Data: filled(1, pg), Missing: []ranges.Range{rng(0, 64)}})
		done <- struct{}{}
	}()
	time.Sleep(200 * time.Millisecond)
	found := make(chan struct{})
	go func() {
		r.engine.NewInode(clean) // a lookup of a clean file
		close(found)
	}()
	select {
	case <-found:
	case <-time.After(3 * time.Second):
		t.Error("the lookup of a clean file waits for the state disk")
	}
	close(d.hang)
	<-done
	<-done
	<-found
}

// owedOn is a file of which page 1 was punched, could not be written, and has its
// image on a state disk of its own; want is what the file reads as. It is not open.
func owedOn(t *testing.T, d *slowDisk) (r *rig, want []byte) {
	t.Helper()
	r, _, want = withOwedPage(t)
	r.stop()
	r.startEngine()
	r.journalOn(d)
	r.check(r.engine.Replay())
	return r, want
}

// TestUnreadableImageIsNotAHole: the image of a punched page can't be read when
// the file is looked up: an error, not the hole's zeros.
func TestUnreadableImageIsNotAHole(t *testing.T) {
	d := &slowDisk{}
	r, want := owedOn(t, d)
	d.fail.Store(true)
	r.open()
	got := make([]byte, 4*pg)
	n, err := r.file.Read(got, 0, Caller{})
	d.fail.Store(false)
	if err == nil && n == len(got) && isZero(got[pg:2*pg]) {
		t.Errorf("read %d, no error, and the page is zeros; want % x ... or an error", n, want[pg:pg+8])
	}
}
