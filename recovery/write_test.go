package recovery

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// cleared fails the test if the simulation still has poison in r.
func (r *rig) wantCleared(at ranges.Range) {
	r.t.Helper()
	for _, in := range r.sim.List() {
		for _, left := range in.Remaining {
			if left.Overlaps(at) {
				r.t.Errorf("poison left in %v", left)
			}
		}
	}
}

// TestOverwriteInAnyShape: P3 for each shape of a write over and beside poison.
func TestOverwriteInAnyShape(t *testing.T) {
	const size = 6*pg + 700
	shapes := map[string]ranges.Range{
		"part of the bad sector":        rng(2*pg+1030, 10),
		"a good sector of the bad page": rng(2*pg+2048, 512),
		"the whole page":                rng(2*pg, pg),
		"three pages":                   rng(pg, 3*pg),
		"page and a sector":             rng(2*pg, pg+512),
		"unaligned over two pages":      rng(2*pg-512, pg),
		"4095 bytes":                    rng(2*pg, 4095),
		"everything":                    rng(0, size),
		"an append over the tail":       rng(size-5, 100),
		"past the tail page":            rng(8*pg, 10),
		"the tail page to its end":      rng(6*pg, 700),
	}
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		for name, at := range shapes {
			for _, read := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/read first=%v", profile, name, read), func(t *testing.T) {
					r := newRig(t, profile, size).start()
					bad := rng(2*pg+1024, 512)
					tail := rng(6*pg, 512)
					r.poison(bad, false)
					r.poison(tail, false)
					want := without(pattern(size), bad, tail)
					if read {
						wantBytes(t, "before", r.read(0, size), want)
					}
					fresh := bytes.Repeat([]byte{0xab}, int(at.Len))
					r.write(at.Off, fresh)
					if at.End() > size {
						want = append(want, make([]byte, at.End()-size)...)
					}
					copy(want[at.Off:], fresh)
					wantBytes(t, "after", r.read(0, int64(len(want))), want)
					cleared := at
					if profile != "line" || read { // a line fails alone: a write beside it meets no poison
						cleared = at.Widen(pg)
					}
					r.wantCleared(cleared)
					if st, err := r.file.below.Stat(); err != nil || st.Size != int64(len(want)) {
						t.Errorf("size %d, want %d (%v)", st.Size, len(want), err)
					}
					r.remount()
					wantBytes(t, "after a remount", r.read(0, int64(len(want))), want)
				})
			}
		}
	}
}

// TestTruncateAndFallocateEdges: changes that touch a bad page in part.
func TestTruncateAndFallocateEdges(t *testing.T) {
	const size = 4*pg + 600
	punch := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	tests := []struct {
		name string
		do   func(f *File) error
		want func(b []byte) []byte
	}{
		{"truncate into the bad page", func(f *File) error { return f.Truncate(pg+100, Caller{}) }, func(b []byte) []byte { return b[:pg+100] }},
		{"truncate to its start", func(f *File) error { return f.Truncate(pg, Caller{}) }, func(b []byte) []byte { return b[:pg] }},
		{"truncate to nothing", func(f *File) error { return f.Truncate(0, Caller{}) }, func(b []byte) []byte { return nil }},
		{"truncate up past a bad tail", func(f *File) error { return f.Truncate(9*pg+1, Caller{}) }, func(b []byte) []byte { return append(b, make([]byte, 9*pg+1-size)...) }},
		{"punch part of the bad page", func(f *File) error { return f.Allocate(punch, pg+10, 1000, Caller{}) }, func(b []byte) []byte { return without(b, rng(pg+10, 1000)) }},
		{"punch the whole bad page", func(f *File) error { return f.Allocate(punch, pg, pg, Caller{}) }, func(b []byte) []byte { return without(b, rng(pg, pg)) }},
		{"zero part of it and the next", func(f *File) error { return f.Allocate(unix.FALLOC_FL_ZERO_RANGE, pg+2000, pg, Caller{}) }, func(b []byte) []byte { return without(b, rng(pg+2000, pg)) }},
		{"allocate past a bad tail", func(f *File) error { return f.Allocate(0, size, 2*pg, Caller{}) }, func(b []byte) []byte { return append(b, make([]byte, 2*pg)...) }},
	}
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		for _, tt := range tests {
			t.Run(profile+"/"+tt.name, func(t *testing.T) {
				r := newRig(t, profile, size).start()
				bad, tail := rng(pg+512, 512), rng(4*pg+512, 64)
				r.poison(bad, false)
				r.poison(tail, false)
				if profile != "line" {
					tail.Len = 88 // its sector, up to the end
				}
				r.check(tt.do(r.file))
				want := tt.want(without(pattern(size), bad, tail))
				wantBytes(t, "after", r.read(0, int64(len(want))), want)
				if st, err := r.file.below.Stat(); err != nil || st.Size != int64(len(want)) {
					t.Errorf("size %d, want %d (%v)", st.Size, len(want), err)
				}
				lost, reinit := r.live()
				for _, s := range []*ranges.Set{lost, reinit} {
					if s.Overlaps(rng(int64(len(want)), 1<<40)) {
						t.Errorf("the ledger has bytes behind the end: %v", s)
					}
				}
				r.check(r.file.Truncate(int64(len(want)+5000), Caller{}))
				wantBytes(t, "grown again", r.read(0, int64(len(want)+5000)), append(want, make([]byte, 5000)...))
			})
		}
	}
}

// TestWritebackOfZeros: zeros that a mapping writes back into lost bytes stay
// reinitialized; what is not zero is new data.
func TestWritebackOfZeros(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	mapped := r.read(pg, pg)
	mapped[0] = 0xff      // a byte that could be had
	mapped[512+100] = 'x' // a lost one, written by the application
	if n, err := r.file.Write(mapped, pg, true, Caller{}); n != pg || err != nil {
		t.Fatal(n, err)
	}
	lost, reinit := r.live()
	wantSet(t, "lost", lost)
	wantSet(t, "reinitialized", reinit, rng(pg+512, 100), rng(pg+613, 411))
	mapped[512+200] = 'y'
	if n, err := r.file.Write(mapped, pg, true, Caller{}); n != pg || err != nil {
		t.Fatal(n, err)
	}
	_, reinit = r.live()
	wantSet(t, "after the second writeback", reinit, rng(pg+512, 100), rng(pg+613, 99), rng(pg+713, 311))
	r.write(pg, make([]byte, pg))
	_, reinit = r.live()
	wantSet(t, "after an ordinary write of zeros", reinit)
	r.wantCleared(rng(pg, pg))
}

// TestNeighboursAtOnce: two writers on one bad page, one by writeback.
func TestNeighboursAtOnce(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		r := newRig(t, "dax", 4*pg).start()
		r.poison(rng(pg+1024, 512), false)
		want := without(pattern(4*pg), rng(pg+1024, 512))
		zero := ranges.Of(rng(pg+1024, 512))
		var wg sync.WaitGroup
		for n := range 8 {
			at := pg + int64(n)*512 + random.Int64N(400)
			fresh := bytes.Repeat([]byte{byte(0x80 + n)}, 1+random.IntN(100))
			copy(want[at:], fresh)
			zero.Remove(rng(at, int64(len(fresh))))
			wg.Go(func() {
				if got, err := r.file.Write(fresh, at, n%2 == 0, Caller{}); got != len(fresh) || err != nil {
					t.Errorf("write: %d, %v", got, err)
				}
			})
			wg.Go(func() {
				if _, err := r.file.Read(make([]byte, 3*pg), 0, Caller{}); err != nil {
					t.Errorf("read: %v", err)
				}
			})
		}
		wg.Wait()
		wantBytes(t, fmt.Sprintf("seed %d", seed), r.read(0, 4*pg), want)
		lost, reinit := r.live()
		wantSet(t, "lost", lost)
		wantSet(t, "reinitialized", reinit, zero.Slice()...)
		r.stop()
	}
}

// TestMediumThatWillNotClear: the writer gets EIO, what was readable is kept
// and served, and a later write tries again.
func TestMediumThatWillNotClear(t *testing.T) {
	r := newRig(t, "", 4*pg)
	var m *mediatest.Medium
	r.wrap = func(media.Medium) media.Medium { m = mediatest.New(64); return m }
	r.start()
	r.check(m.Bad(r.fd, rng(pg+128, 64)))
	want := without(pattern(4*pg), rng(pg+128, 64))
	m.Refuse(unix.EFAULT)
	for _, b := range [][]byte{[]byte("part"), make([]byte, pg)} {
		if n, err := r.file.Write(b, pg, false, Caller{}); n != 0 || Errno(err) != unix.EIO {
			t.Errorf("write of %d: %d, %v, want EIO", len(b), n, err)
		}
		wantBytes(t, "kept and served", r.read(0, 4*pg), want)
	}
	if !strings.Contains(r.told(), `"repair-failed"`) {
		t.Error("no event")
	}
	m.Refuse(nil)
	r.write(pg, []byte("part"))
	copy(want[pg:], "part")
	wantBytes(t, "cleared at last", r.below(), want)
	if n := len(r.journal.Intents()); n != 0 {
		t.Errorf("%d intents open", n)
	}
}

// TestStateDiskRefuses: a repair that can't be made safe is not done at all.
func TestStateDiskRefuses(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg+512, 512), false)
	r.read(0, 4*pg)
	r.check(r.journal.Shutdown())
	before := r.below()
	n, err := r.file.Write([]byte("part"), pg, false, Caller{})
	if n != 0 || Errno(err) != unix.EIO {
		t.Errorf("write: %d, %v, want EIO", n, err)
	}
	wantBytes(t, "the backing file", r.below(), before)
	if len(r.sim.List()) == 0 {
		t.Error("the poison was cleared without a journal")
	}
	fs := r.engine.FS
	if r.journal, err = journalAgain(r, fs); err != nil {
		t.Fatal(err)
	}
	r.engine.Journal = r.journal
}

// TestCopy records zeros that stand for lost bytes on the destination.
func TestCopy(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	fd, err := unix.Open(r.backing+"/copy", unix.O_RDWR|unix.O_CREAT, 0o644)
	r.check(err)
	defer unix.Close(fd)
	ino := r.engine.NewInode(fd)
	dst := r.engine.Open(ino, fd)
	n, err := Copy(dst, 100, r.file, 50, 10*pg, Caller{})
	if n != 4*pg-50 || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, 4*pg+50)
	if _, err := dst.Read(got, 0, Caller{}); err != nil {
		t.Fatal(err)
	}
	want := append(make([]byte, 100), without(pattern(4*pg), bad)[50:]...)
	wantBytes(t, "the copy", got, want)
	id, err := fileid.Of(fd)
	r.check(err)
	lost, reinit, err := r.ledger.Live(id.Key())
	r.check(err)
	wantSet(t, "lost in the copy", lost)
	wantSet(t, "zero in the copy", reinit, bad.Shift(50))
	// Within one file, overlapping pages of it.
	n, err = Copy(r.file, 3*pg, r.file, 0, pg, Caller{})
	if n != pg || err != nil {
		t.Fatal(n, err)
	}
	wantBytes(t, "within the file", r.read(3*pg, pg), pattern(pg))
}
