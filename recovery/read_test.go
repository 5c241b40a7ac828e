package recovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/bits"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestReadLosesExactlyWhatTheMediumProves: P1, for each profile.
func TestReadLosesExactlyWhatTheMediumProves(t *testing.T) {
	tests := []struct {
		name, profile string
		poison        ranges.Range
		latent        bool
		lost          ranges.Range
	}{
		{"dax/known line loses its sector", "dax", rng(pg+640, 64), false, rng(pg+512, 512)},
		{"dax/latent line at the first touch", "dax", rng(pg+640, 64), true, rng(pg+640, 64)},
		{"dax/latent first line of a page", "dax", rng(2*pg, 64), true, rng(2*pg, 64)},
		{"dax/two pages", "dax", rng(2*pg-512, 1024), false, rng(2*pg-512, 1024)},
		{"dax/first bytes of the file", "dax", rng(0, 64), false, rng(0, 512)},
		{"dax/whole page", "dax", rng(pg, pg), false, rng(pg, pg)},
		{"dax/tail page", "dax", rng(5*pg, 100), false, rng(5*pg, 100)},
		{"dax-5.18/known line loses its sector", "dax-5.18", rng(pg+640, 64), false, rng(pg+512, 512)},
		{"line/known", "line", rng(pg+640, 64), false, rng(pg+640, 64)},
		{"line/latent", "line", rng(pg+640, 130), true, rng(pg+640, 192)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			size := 5*pg + 100
			r := newRig(t, tt.profile, size).start()
			r.poison(tt.poison, tt.latent)
			want := without(pattern(size), tt.lost)
			for _, what := range []string{"first read", "second read"} {
				wantBytes(t, what, r.read(0, int64(size)), want)
			}
			lost, _ := r.live()
			wantSet(t, "ledger", lost, tt.lost)
			r.remount()
			wantBytes(t, "after a remount", r.read(0, int64(size)), want)
			lost, _ = r.live()
			wantSet(t, "ledger after a remount", lost, tt.lost)
		})
	}
}

// TestReadInAnyShape reads a hurt file in pieces of all kinds.
func TestReadInAnyShape(t *testing.T) {
	const size = 20*pg + 77
	for _, profile := range []string{"dax", "line"} {
		r := newRig(t, profile, size).start()
		lost := []ranges.Range{rng(3*pg+512, 512), rng(4*pg, 3*pg), rng(20*pg, 64)}
		for _, l := range lost {
			r.poison(l, false)
		}
		if profile == "dax" {
			lost[2].Len = 77 // its sector, up to the end
		}
		want := without(pattern(size), lost...)
		for _, step := range []int64{1, 100, 512, 4095, 4096, 4097, 30000, size} {
			if step == 1 && testing.Short() {
				continue
			}
			for off := int64(0); off < size; off += step {
				n := min(step, size-off)
				wantBytes(t, profile, r.read(off, n), want[off:off+n])
			}
		}
		if n, err := r.file.Read(make([]byte, 100), size-10, Caller{}); n != 10 || err != nil {
			t.Errorf("a read over the end: %d, %v", n, err)
		}
		if n, err := r.file.Read(make([]byte, 100), size+10, Caller{}); n != 0 || err != nil {
			t.Errorf("a read behind the end: %d, %v", n, err)
		}
	}
}

// TestReadOfAHugeFileIsBounded: 1 GiB with 1,000 bad pages costs O(k log n)
// calls more than a clean read, and the second read costs little.
func TestReadOfAHugeFileIsBounded(t *testing.T) {
	const size, bad, request = 1 << 30, 1000, 1 << 20
	r := newRig(t, "dax", pg)
	var count counting
	r.wrap = func(m media.Medium) media.Medium { count = newCounting(m); return count }
	r.start()
	r.check(r.file.Truncate(size, Caller{}))
	for n := range int64(bad) {
		off := (n*262144/bad*2654435761%262144)*pg + 1024
		r.write(off&^(pg-1), []byte("allocated"))
		r.poison(rng(off, 64), false)
	}
	buf := make([]byte, request)
	readAll := func() int64 {
		before := count.preads.Load()
		for off := int64(0); off < size; off += request {
			if n, err := r.file.Read(buf, off, Caller{}); n != request || err != nil {
				t.Fatalf("read at %d: %d, %v", off, n, err)
			}
		}
		return count.preads.Load() - before
	}
	logn := int64(bits.Len(size / pg))
	extra := readAll() - size/request
	if limit := bad * logn; extra > limit {
		t.Errorf("first read: %d extra calls for %d bad pages of %d, more than k·log n = %d", extra, bad, size/pg, limit)
	}
	again := readAll() - size/request
	if limit := int64(2 * bad); again > limit {
		t.Errorf("second read: %d extra calls, more than 2 a bad page", again)
	}
	t.Logf("extra calls: first read %d, second read %d (k·log n = %d)", extra, again, bad*logn)
}

// TestCleanReadCostsOneCall: P7.
func TestCleanReadCostsOneCall(t *testing.T) {
	r := newRig(t, "", 8*pg)
	var count counting
	r.wrap = func(m media.Medium) media.Medium { count = newCounting(m); return count }
	r.start()
	buf := make([]byte, pg)
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := r.file.Read(buf, pg, Caller{}); err != nil {
			t.Error(err)
		}
	})
	if got := count.preads.Load(); got != 101 || count.stats.Load() != 0 {
		t.Errorf("%d preads and %d stats for 101 reads", got, count.stats.Load())
	}
	if allocs != 0 {
		t.Errorf("%v allocations a read", allocs)
	}
}

// TestForeignMedium reads and repairs on a medium that keeps no list, fails
// page by page or line by line, and answers short.
func TestForeignMedium(t *testing.T) {
	for _, granularity := range []int64{64, 4096} {
		t.Run(map[int64]string{64: "line", 4096: "page"}[granularity], func(t *testing.T) {
			const size = 40*pg + 300
			r := newRig(t, "", size)
			var m *mediatest.Medium
			r.wrap = func(media.Medium) media.Medium { m = mediatest.New(granularity); return m }
			r.start()
			bad := []ranges.Range{rng(2*pg+128, 64), rng(7*pg, 3*pg), rng(40*pg+64, 64)}
			var lost []ranges.Range
			for _, b := range bad {
				r.check(m.Bad(r.fd, b))
				lost = append(lost, b.Widen(granularity).Intersect(ranges.Between(0, size)))
			}
			content := pattern(size)
			want := without(content, lost...)
			for range 2 {
				wantBytes(t, "read", r.read(0, size), want)
			}
			got, _ := r.live()
			wantSet(t, "ledger", got, lost...)
			r.write(2*pg+10, []byte("part of a page"))
			copy(want[2*pg+10:], "part of a page")
			wantBytes(t, "after a part-page write", r.read(0, size), want)
			r.write(7*pg, content[7*pg:10*pg])
			copy(want[7*pg:], content[7*pg:10*pg])
			r.write(size-10, []byte("an append over the bad tail page"))
			want = append(want[:size-10], "an append over the bad tail page"...)
			wantBytes(t, "after all writes", r.read(0, int64(len(want))), want)
			wantBytes(t, "the backing file", r.below(), want)
		})
	}
}

// TestOutageIsNotPoison: P9. Nothing is zeroed, recorded or repaired.
func TestOutageIsNotPoison(t *testing.T) {
	r := newRig(t, "", 10*pg)
	var m *mediatest.Medium
	r.wrap = func(media.Medium) media.Medium { m = mediatest.New(pg); return m }
	r.start()
	for _, errno := range []unix.Errno{unix.EIO, unix.ENODEV, unix.EFAULT} {
		m.SetOutage(errno)
		buf := make([]byte, 3*pg)
		for range 20 {
			n, err := r.file.Read(buf, 0, Caller{})
			if n != 0 || !errors.Is(err, errno) {
				t.Errorf("read in an outage: %d, %v, want %v", n, err, errno)
			}
			if _, err := r.file.Write([]byte("x"), 5, false, Caller{}); Errno(err) != errno {
				t.Errorf("write in an outage: %v, want %v", err, errno)
			}
		}
		if err := r.file.Truncate(100, Caller{}); Errno(err) != errno {
			t.Errorf("truncate in an outage: %v, want %v", err, errno)
		}
		m.SetOutage(nil)
	}
	wantBytes(t, "after the outage", r.read(0, 10*pg), pattern(10*pg))
	if lost, _ := r.live(); !lost.Empty() {
		t.Errorf("lost in an outage: %v", lost)
	}
	if log := r.told(); strings.Count(log, `"outage"`) != 1 {
		t.Errorf("want 1 outage event:\n%s", log)
	}
}

// TestOutageDuringARecoveryRead: the first failures look isolated, then all fails.
func TestOutageBehindABadPage(t *testing.T) {
	r := newRig(t, "", 10*pg)
	var m *mediatest.Medium
	r.wrap = func(media.Medium) media.Medium { m = mediatest.New(pg); return m }
	r.start()
	r.check(m.Bad(r.fd, rng(3*pg, pg)))
	want := without(pattern(10*pg), rng(3*pg, pg))
	wantBytes(t, "read", r.read(0, 10*pg), want)
	m.SetOutage(unix.EIO)
	if n, err := r.file.Read(make([]byte, 10*pg), 0, Caller{}); n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("read: %d, %v", n, err)
	}
	lost, _ := r.live()
	wantSet(t, "lost", lost, rng(3*pg, pg))
}

// TestBreaker passes failures through when too many uncorroborated pages fail.
func TestBreaker(t *testing.T) {
	b := breaker{limit: 5}
	now := time.Now()
	if !b.allow(now, 4) || !b.allow(now.Add(time.Second), 1) {
		t.Error("refused the first pages")
	}
	if b.allow(now.Add(time.Second), 1) || !b.open(now.Add(time.Second)) {
		t.Error("allowed more than the limit")
	}
	if b.allow(now.Add(9*time.Second), 1) {
		t.Error("allowed while not quiet")
	}
	if !b.allow(now.Add(20*time.Second), 1) || b.open(now.Add(20*time.Second)) {
		t.Error("refused after a quiet window")
	}
}

// TestBreakerOfTheConfig: one read meets two bad pages that are on no list.
func TestBreakerOfTheConfig(t *testing.T) {
	for _, c := range []struct {
		given, pages int
		want         error
	}{{0, DefaultBreaker, nil}, {1, 1, unix.EIO}, {2, 2, nil}} {
		r := newRig(t, "", 10*pg)
		m := mediatest.New(pg)
		r.wrap, r.breaker = func(media.Medium) media.Medium { return m }, c.given
		r.start()
		r.check(m.Bad(r.fd, rng(3*pg, 2*pg)))
		if _, err := r.file.Read(make([]byte, 10*pg), 0, Caller{}); !errors.Is(err, c.want) {
			t.Errorf("breaker %d: %v, want %v", c.given, err, c.want)
		}
		if now := r.engine.Status(); now.Breaker != (c.want != nil) || now.BreakerPages != c.pages {
			t.Errorf("breaker %d: open %v, %d pages", c.given, now.Breaker, now.BreakerPages)
		}
	}
}

// TestStrict passes the medium's errors on, never a short count.
func TestStrict(t *testing.T) {
	for _, latent := range []bool{false, true} {
		r := newRig(t, "dax", 10*pg)
		r.rules = "strict"
		r.start()
		r.poison(rng(3*pg+1024, 64), latent)
		for _, at := range []ranges.Range{rng(0, 10*pg), rng(3*pg, pg)} {
			n, err := r.file.Read(make([]byte, at.Len), at.Off, Caller{})
			if n != 0 || Errno(err) != unix.EIO {
				t.Errorf("latent=%v read %v: %d, %v, want EIO", latent, at, n, err)
			}
		}
		wantBytes(t, "a good page", r.read(5*pg, pg), pattern(10 * pg)[5*pg:6*pg])
		if _, err := r.file.Write([]byte("x"), 3*pg, false, Caller{}); Errno(err) != unix.EFAULT {
			t.Errorf("part-page write: %v, want EFAULT", err)
		}
		r.write(3*pg, make([]byte, pg))
		wantBytes(t, "after a whole-page write", r.read(3*pg, pg), make([]byte, pg))
		if lost, _ := r.live(); !lost.Empty() {
			t.Errorf("strict recorded loss: %v", lost)
		}
	}
}

// TestSemanticsByName names the ones that are not in this version.
func TestSemanticsByName(t *testing.T) {
	for name, want := range map[string]string{"recover": "", "strict": "", "prefix": "not in this version",
		"zeroinit": "not in this version", "punch": "not in this version", "": "no semantics", "RECOVER": "no semantics"} {
		s, err := SemanticsByName(name)
		if want == "" && (err != nil || s.Name != name) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, %v", name, s, err)
		}
	}
}

// TestLossIsNoticedWhenItIsGone: the poison is taken away behind our back.
func TestLossIsNoticedWhenItIsGone(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg, 512), false)
	wantBytes(t, "read", r.read(0, 4*pg), without(pattern(4*pg), rng(pg, 512)))
	r.check(r.sim.Clear())
	r.engine.Recheck()
	wantBytes(t, "after the poison went", r.read(0, 4*pg), pattern(4*pg))
	lost, reinit := r.live()
	wantSet(t, "lost", lost)
	wantSet(t, "reinitialized", reinit)
}

// TestRemovedFileIsNotLost: its rows are history once nobody can open it.
func TestRemovedFileIsNotLost(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg, 512), false)
	r.read(0, 4*pg)
	r.check(os.Remove(r.path()))
	r.check(r.engine.Sweep())
	if lost, _ := r.live(); lost.Empty() {
		t.Error("the rows of an open file without a name are gone")
	}
	r.check(r.closeFile())
	r.check(r.engine.Sweep())
	for row, err := range r.ledger.All(false) {
		t.Errorf("still live: %+v, %v", row, err)
	}
	if r.journal.HasImages() {
		t.Error("still has an image")
	}
}

// TestStrictNamesThePage: the kernel fails more than the page that is bad.
func TestStrictNamesThePage(t *testing.T) {
	r := newRig(t, "dax", 10*pg)
	r.rules = "strict"
	r.start()
	r.poison(rng(3*pg+1024, 64), false)
	if _, err := r.file.Read(make([]byte, 10*pg), 0, Caller{}); Errno(err) != unix.EIO {
		t.Error(err)
	}
	if n := r.engine.Status().PassedOn; n != 1 {
		t.Errorf("%d errors counted", n)
	}
	if log := r.told(); !strings.Contains(log, `"event":"detected"`) || !strings.Contains(log, `"offset":12288,"length":4096`) {
		t.Errorf("told:\n%s", log)
	}
}

// TestLostXattr is the value of user.mendfs.lost.
func TestLostXattr(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	if v, ok := r.ino.LostXattr(); ok {
		t.Errorf("a whole file has %s", v)
	}
	r.poison(rng(pg, 512), false)
	r.read(0, 4*pg)
	v, ok := r.ino.LostXattr()
	if want := `{"version":1,"lost":[{"offset":4096,"length":512,"state":"lost"}]}`; !ok || string(v) != want {
		t.Errorf("%s, want %s", v, want)
	}
	var much ledger.Change
	for n := range int64(1000) {
		much.Lost = append(much.Lost, ledger.Loss{File: r.ino.damage.Load().id, Range: rng(n*200, 100)})
	}
	r.check(r.ledger.Record(much))
	v, _ = r.ino.LostXattr()
	var value struct{ Truncated bool }
	if err := json.Unmarshal(v, &value); err != nil || !value.Truncated || len(v) > maxXattr {
		t.Errorf("%d bytes, truncated=%v, %v", len(v), value.Truncated, err)
	}
}

// TestLostBytesNeverGrow: a page loses a second line; what was salvaged before
// is still served.
func TestLostBytesNeverGrow(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg+64, 64), true)
	want := without(pattern(4*pg), rng(pg+64, 64))
	wantBytes(t, "first touch", r.read(0, 4*pg), want)
	r.poison(rng(pg+2048, 512), false)
	r.engine.Recheck()
	wantBytes(t, "after more poison", r.read(0, 4*pg), want)
	r.remount()
	wantBytes(t, "after a remount", r.read(0, 4*pg), want)
	if !bytes.Contains([]byte(r.engine.Status().Semantics), []byte("recover")) {
		t.Error("status")
	}
}
