package recovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// listing tells the engine what the simulator lists of the file.
func (r *rig) listing(list ...ranges.Range) {
	r.t.Helper()
	id, err := fileid.Of(r.fd)
	r.check(err)
	r.check(r.engine.Detected(id, r.name, r.ino, Listed{Pieces: list}))
}

// known is what the simulator lists of the file.
func (r *rig) known() []ranges.Range {
	r.t.Helper()
	id, err := fileid.Of(r.fd)
	r.check(err)
	for _, k := range r.sim.Known() {
		if k.File.Key() == id.Key() {
			return k.Listed
		}
	}
	return nil
}

// toldOf is the ranges of the events of a kind; no event follows.
func (r *rig) toldOf(kind event.Kind) []ranges.Range {
	r.t.Helper()
	var out []ranges.Range
	for line := range strings.Lines(r.told()) {
		var ev event.Event
		r.check(json.Unmarshal([]byte(line), &ev))
		if ev.Event == kind {
			out = append(out, rng(ev.Offset, ev.Length))
		}
	}
	return out
}

// reads reports what a read of the file has to show.
func (r *rig) reads(want []byte) {
	r.t.Helper()
	wantBytes(r.t, "read", r.read(0, int64(len(want))), want)
}

func (r *rig) mtime() int64 {
	r.t.Helper()
	st, err := r.file.below.Stat()
	r.check(err)
	return st.Mtime
}

func TestDetectedTellsOnce(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	one, two, three := rng(pg, 512), rng(3*pg, 1024), rng(pg+1024, 512)
	r.listing(one)
	r.listing(one)
	r.listing(one, two)
	r.listing(one, three, two)
	if !r.ino.Damaged() {
		t.Error("the file is not taken for damaged")
	}
	r.listing()
	if r.ino.Damaged() {
		t.Error("the list is empty, and the file still taken for damaged")
	}
	if got, want := r.toldOf(event.Detected), []ranges.Range{one, two, three}; !slices.Equal(got, want) {
		t.Errorf("detected %v, want %v", got, want)
	}
	if got := r.toldOf(event.Lost); len(got) > 0 {
		t.Errorf("lost before anybody read: %v", got)
	}
}

// Pieces of one page are told together, and those that were told before not again.
func TestDetectedTellsByPage(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	old := rng(pg+512, 512)
	r.listing(old)
	r.listing(rng(0, 512), rng(1024, 512), rng(pg-512, 512), old, rng(pg+2048, 512), rng(pg+3072, 512), rng(3*pg-512, 1024), rng(3*pg+1024, 512))
	want := []ranges.Range{old, rng(0, pg), rng(pg+2048, 1536), rng(3*pg-512, 1024), rng(3*pg+1024, 512)}
	if got := r.toldOf(event.Detected); !slices.Equal(got, want) {
		t.Errorf("detected %v, want %v", got, want)
	}
}

func TestDetectedKnownToInodesMadeLater(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	id, err := fileid.Of(r.fd)
	r.check(err)
	r.check(r.engine.Detected(id, r.name, nil, Listed{Pieces: []ranges.Range{rng(pg, 512)}}))
	if !r.engine.NewInode(r.fd).Damaged() {
		t.Error("an Inode made later does not know")
	}
}

// A read of a file with listed pages asks for these alone, and for all else at
// once: no read fails as a whole first.
func TestDetectedReadsAskPageByPage(t *testing.T) {
	var reads []ranges.Range
	r := newRig(t, "dax", 64*pg)
	r.wrap = func(m media.Medium) media.Medium {
		return &watchMedium{Medium: m, pread: func(at ranges.Range) { reads = append(reads, at) }}
	}
	r.start()
	bad := rng(20*pg, 512)
	r.poison(bad, false)
	r.listing(bad)
	reads = nil
	r.reads(without(pattern(64*pg), bad))
	for _, at := range reads {
		if at.Overlaps(bad) && at.Len > pg {
			t.Errorf("read %v over a page that was known to be bad", at)
		}
	}
	if len(reads) == 0 {
		t.Error("nothing was read")
	}
	if got := r.toldOf(event.Lost); !slices.Equal(got, []ranges.Range{bad}) {
		t.Errorf("lost %v, want %v", got, bad)
	}
}

// What the list has wrong does no harm, and is forgotten by the first read.
func TestDetectedFalseAlarm(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	r.listing(rng(pg, 512), rng(6*pg, 2*pg))
	r.reads(pattern(8 * pg))
	if r.ino.Damaged() {
		t.Error("all read well, and the file is still taken for damaged")
	}
}

// A write of a whole page that is listed gives nothing up first.
func TestDetectedWholePageWriteLosesNothing(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	bad := rng(2*pg+512, 512)
	r.poison(bad, false)
	r.listing(bad)
	fresh := bytes.Repeat([]byte("x"), pg)
	if n, err := r.file.Write(fresh, 2*pg, false, Caller{}); n != pg || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	want := pattern(8 * pg)
	copy(want[2*pg:], fresh)
	r.reads(want)
	if len(r.sim.List()) > 0 {
		t.Error("the poison is still there")
	}
	if got := r.toldOf(event.Lost); len(got) > 0 {
		t.Errorf("lost %v", got)
	}
}

func TestDetectedWriteOfPart(t *testing.T) {
	for _, at := range []int64{2 * pg, 2*pg + 512, 2*pg + 1000} {
		r := newRig(t, "dax", 8*pg).start()
		bad := rng(2*pg+512, 512)
		r.poison(bad, false)
		r.listing(bad)
		fresh := []byte("fresh bytes")
		if n, err := r.file.Write(fresh, at, false, Caller{}); n != len(fresh) || err != nil {
			t.Fatalf("write at %d: %d, %v", at, n, err)
		}
		want := pattern(8 * pg)
		clear(want[bad.Off:bad.End()])
		copy(want[at:], fresh)
		r.reads(want)
		if len(r.sim.List()) > 0 {
			t.Errorf("after a write at %d the poison is still there", at)
		}
	}
}

func TestDetectedTailPage(t *testing.T) {
	r := newRig(t, "dax", 2*pg+1).start()
	r.poison(rng(2*pg, 1), false)
	r.listing(rng(2*pg, 512))
	want := pattern(2*pg + 1)
	want[2*pg] = 0
	r.reads(want)
}

func TestReinitialize(t *testing.T) {
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		t.Run(profile, func(t *testing.T) {
			r := newRig(t, profile, 64*pg).start()
			want := pattern(64 * pg)
			var list []ranges.Range
			for i := int64(0); i < 40; i++ { // more than one batch
				bad := rng(i*pg+i*64, 64)
				r.poison(bad, false)
				list = append(list, bad)
				clear(want[bad.Off:bad.End()])
				if profile != "line" {
					sector := bad.Widen(512)
					clear(want[sector.Off:sector.End()])
				}
			}
			mtime := r.mtime()
			r.listing(list...)
			r.check(r.file.Reinitialize())
			if left := r.sim.List(); len(left) > 0 {
				t.Fatalf("poison left: %v", left)
			}
			r.reads(want)
			if got := r.mtime(); got != mtime {
				t.Errorf("mtime is %d, was %d", got, mtime)
			}
			if in := r.journal.Intents(); len(in) > 0 {
				t.Errorf("%d intents open", len(in))
			}
			if got := r.toldOf(event.RepairFailed); len(got) > 0 {
				t.Errorf("repairs failed: %v", got)
			}
		})
	}
}

func TestReinitializeWhileShared(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	bad := rng(pg, 512)
	r.poison(bad, false)
	r.listing(bad)
	unshare := r.ino.Share()
	if err := r.file.Reinitialize(); !errors.Is(err, ErrShared) {
		t.Errorf("while the file is shared: %v, want ErrShared", err)
	}
	unshare()
	r.check(r.file.Reinitialize())
	if len(r.sim.List()) > 0 {
		t.Error("poison left")
	}
	if got := r.toldOf(event.RepairFailed); len(got) > 0 {
		t.Errorf("told as failures: %v", got)
	}
}

// A page on nobody's list is left alone: its failure may pass.
func TestReinitializeLeavesUnlisted(t *testing.T) {
	bad := ranges.Page(2 * pg)
	wrote := false
	r := newRig(t, "", 8*pg)
	r.wrap = func(m media.Medium) media.Medium {
		return &watchMedium{Medium: m, fail: bad, pwrite: func() { wrote = true }}
	}
	r.start()
	want := pattern(8 * pg)
	clear(want[bad.Off:bad.End()])
	r.reads(want)
	r.check(r.file.Reinitialize())
	if wrote {
		t.Error("a page that no list names was rewritten")
	}
}

// watchMedium tells of what is asked of a medium, and can't read fail.
type watchMedium struct {
	media.Medium
	fail   ranges.Range
	pread  func(ranges.Range)
	pwrite func()
}

func (m *watchMedium) Open(fd int) media.File { return &watchFile{m.Medium.Open(fd), m} }

type watchFile struct {
	media.File
	medium *watchMedium
}

func (f *watchFile) Pread(p []byte, off int64) (int, error) {
	at := rng(off, int64(len(p)))
	if f.medium.pread != nil {
		f.medium.pread(at)
	}
	if at.Overlaps(f.medium.fail) {
		return 0, unix.EIO
	}
	return f.File.Pread(p, off)
}

func (f *watchFile) Pwrite(p []byte, off int64, uid uint32) (int, error) {
	if f.medium.pwrite != nil {
		f.medium.pwrite()
	}
	return f.File.Pwrite(p, off, uid)
}

// What readers have met, and was told then, is not told again when the list has it.
func TestDetectedAfterItWasMet(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	bad := rng(pg, 512)
	r.poison(bad, false)
	r.reads(without(pattern(8*pg), bad))
	r.listing(bad)
	r.reads(without(pattern(8*pg), bad))
	if got := r.toldOf(event.Detected); len(got) > 0 {
		t.Errorf("detected %v", got)
	}
}

// TestDetectedAgainAfterFailure has the ledger not be asked at first: what could not be
// told of then is told by the next call, and known from then on.
func TestDetectedAgainAfterFailure(t *testing.T) {
	r := newRig(t, "dax", 8*pg).start()
	bad := rng(pg, 512)
	id, err := fileid.Of(r.fd)
	r.check(err)
	r.engine.Ledger = closedLedger(t, id)
	if err := r.engine.Detected(id, r.name, r.ino, Listed{Pieces: []ranges.Range{bad}}); !errors.Is(err, ledger.ErrClosed) {
		t.Fatalf("with a ledger that can't be asked: %v", err)
	}
	r.engine.Ledger = r.ledger
	r.listing(bad)
	if !r.ino.Damaged() {
		t.Error("the file is not taken for damaged")
	}
	if got := r.toldOf(event.Detected); !slices.Equal(got, []ranges.Range{bad}) {
		t.Errorf("detected %v, want %v", got, bad)
	}
}

// closedLedger is a ledger that has rows of the file, and can't say which.
func closedLedger(t *testing.T, id fileid.ID) *ledger.Ledger {
	path := filepath.Join(t.TempDir(), "ledger.db")
	var l *ledger.Ledger
	for _, change := range []ledger.Change{{Lost: []ledger.Loss{{File: id, Range: rng(0, 64), Cause: "eio"}}}, {}} { // opened again, it has no row in memory
		var err error
		if l, err = ledger.Open(path, "fs", fileid.ID{Ino: 2}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Commit(change), l.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return l
}
