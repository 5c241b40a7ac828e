package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestReadWithoutLockDuringARepair: the pread of a reader that began when
// nothing was known falls into the moment in which the page is a hole.
func TestReadWithoutLockDuringARepair(t *testing.T) {
	r := newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	r.poison(rng(pg+512, 64), false)
	want := without(pattern(4*pg), rng(pg+512, 512))
	begun, punched, done := make(chan bool), make(chan bool), make(chan bool)
	var first atomic.Bool
	s.pread = func(f media.File, b []byte, off int64) (n int, err error) {
		late := first.CompareAndSwap(false, true) // our reader is the first to read
		if late {
			close(begun)
			<-punched
		}
		n, err = f.Pread(b, off)
		if late {
			if n != 512 || err != nil || !isZero(b) {
				t.Errorf("no hole: %d, %v", n, err)
			}
			close(done)
		}
		return n, err
	}
	r.onStep(func(at failpoint.Step) {
		if at == failpoint.PagePunched {
			close(punched)
			<-done
		}
	})
	var reader sync.WaitGroup
	reader.Go(func() { wantBytes(t, "what the reader gets", r.read(pg, 512), want[pg:pg+512]) })
	<-begun
	r.write(pg+2000, []byte("part"))
	reader.Wait()
	r.onStep(nil)
	copy(want[pg+2000:], "part")
	wantBytes(t, "afterwards", r.read(0, 4*pg), want)
}

// TestShortReadWithoutLockIsKept: the first touch of latent poison, made without
// the lock, loses the line only; but not if the file was written meanwhile.
func TestShortReadWithoutLockIsKept(t *testing.T) {
	for _, written := range []bool{false, true} {
		r := newRig(t, "dax", 4*pg)
		s := script(r)
		r.start()
		bad := rng(pg+640, 64)
		r.poison(bad, true)
		want := pattern(4 * pg)
		var first atomic.Bool
		s.pread = func(f media.File, b []byte, off int64) (int, error) {
			n, err := f.Pread(b, off)
			if first.CompareAndSwap(false, true) && written {
				r.write(pg, []byte("newer"))
				copy(want[pg:], "newer")
			}
			return n, err
		}
		got := r.read(0, 4*pg)
		if written { // the second touch knows the sector only
			bad = bad.Widen(ranges.SectorSize)
		}
		want = without(want, bad)
		wantBytes(t, fmt.Sprintf("written=%v", written), got, want)
		wantBytes(t, "again", r.read(0, 4*pg), want)
	}
}

// TestReadersAndRepairs: a read sees what was there before a repair, what is
// there after it, or a mixture, and nothing else.
func TestReadersAndRepairs(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		r := newRig(t, profile, pg).start()
		for n := range rounds {
			readAndRepair(t, r, n)
		}
	}
}

func readAndRepair(t *testing.T, r *rig, n int) {
	t.Helper()
	const size = 3*pg + 200
	old, name := pattern(size), fmt.Sprint("file", n)
	r.check(os.WriteFile(filepath.Join(r.backing, name), old, 0o644))
	fd, err := unix.Open(filepath.Join(r.backing, name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	r.check(err)
	defer unix.Close(fd)
	file := r.engine.Open(r.engine.NewInode(fd), fd)
	id, err := fileid.Of(fd)
	r.check(err)
	bad := []ranges.Range{rng(pg+512, 512), rng(3*pg, 200)}
	for _, b := range bad {
		_, err = r.sim.Inject(id, name, fd, b, n%2 == 0)
		r.check(err)
	}
	lost := ranges.Of(bad...)
	fresh := []ranges.Range{rng(pg+700, 100), rng(3*pg+50, 50)}
	written := ranges.Of(fresh...)
	check := func(off int64, b []byte) {
		for i, c := range b {
			at := rng(off+int64(i), 1)
			switch {
			case c == old[at.Off], c == 0 && lost.Overlaps(at), c == 0xab && written.Overlaps(at):
			default:
				t.Errorf("byte %d reads %#x, was %#x", at.Off, c, old[at.Off])
				return
			}
		}
	}
	var all sync.WaitGroup
	for reader := range 3 {
		all.Go(func() {
			b := make([]byte, size)
			for k := range 12 {
				off := int64((reader + k) % 3 * pg)
				if reader == 0 {
					off = 0
				}
				got, err := file.Read(b[off:], off, Caller{})
				if err != nil || int64(got) != size-off {
					t.Errorf("read from %d: %d, %v", off, got, err)
				}
				check(off, b[off:])
			}
		})
	}
	for _, f := range fresh {
		all.Go(func() {
			b := make([]byte, f.Len)
			for i := range b {
				b[i] = 0xab
			}
			if got, err := file.Write(b, f.Off, false, Caller{}); err != nil || got != len(b) {
				t.Errorf("write %v: %d, %v", f, got, err)
			}
		})
	}
	all.Wait()
}
