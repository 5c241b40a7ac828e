package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestDamaged follows one page from clean to clean.
func TestDamaged(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	want := func(what string, want bool) {
		t.Helper()
		if r.ino.Damaged() != want {
			t.Errorf("%s: damaged is %v", what, !want)
		}
	}
	want("at first", false)
	r.poison(rng(pg+512, 512), false)
	want("before anybody met it", false)
	r.read(0, 4*pg)
	want("lost", true)
	r.remount()
	want("lost, after a remount", true)
	r.write(pg, []byte("part"))
	want("reinitialized", true)
	r.remount()
	want("reinitialized, after a remount", true)
	r.write(pg, pattern(pg))
	want("overwritten", false)
}

// TestDamagedByAnOpenRepair: nothing is lost, and still it is not over.
func TestDamagedByAnOpenRepair(t *testing.T) {
	r := withOpenRepair(t)
	if !r.ino.Damaged() {
		t.Error("not damaged with an open repair")
	}
	r.write(pg, pattern(pg))
	if r.ino.Damaged() {
		t.Error("damaged after its end")
	}
}

// TestSharedFileIsNotRewritten: what would need salvaged content fails and
// changes nothing; whole pages go through; unshared, all goes through.
func TestSharedFileIsNotRewritten(t *testing.T) {
	const size = 6*pg + 700
	bad, tail := rng(2*pg+1024, 512), rng(6*pg, 512)
	punch := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	const wholeWriteback = "a writeback of the page"
	write := func(off, n int64, writeback bool) func(f *File) error {
		return func(f *File) error {
			_, err := f.Write(bytes.Repeat([]byte{0xab}, int(n)), off, writeback, Caller{})
			return err
		}
	}
	tests := []struct {
		name    string
		do      func(f *File) error
		refused bool
	}{
		{"part of the page", write(2*pg+2048, 100, false), true},
		{"the whole page", write(2*pg, pg, false), false},
		{"three pages", write(pg, 3*pg, false), false},
		{"another page", write(4*pg, 100, false), false},
		{wholeWriteback, write(2*pg, pg, true), true},
		{"the tail page up to its end", write(6*pg, 700, false), true},
		{"the whole tail page and more", write(6*pg, pg+1, false), false},
		{"an append", write(size, 10, false), true},
		{"growth past the tail", write(9*pg, 10, false), true},
		{"truncate into the page", func(f *File) error { return f.Truncate(2*pg+1, Caller{}) }, true},
		{"truncate to its start", func(f *File) error { return f.Truncate(2*pg, Caller{}) }, false},
		{"truncate up", func(f *File) error { return f.Truncate(9*pg, Caller{}) }, true},
		{"punch a part", func(f *File) error { return f.Allocate(punch, 2*pg, 100, Caller{}) }, true},
		{"punch the page", func(f *File) error { return f.Allocate(punch, 2*pg, pg, Caller{}) }, false},
		{"zero a part", func(f *File) error { return f.Allocate(unix.FALLOC_FL_ZERO_RANGE, 2*pg+9, pg, Caller{}) }, true},
	}
	for _, profile := range []string{"dax", "dax-5.18"} {
		for _, known := range []bool{true, false} {
			for _, tt := range tests {
				if !known && tt.name == wholeWriteback {
					continue // it meets no poison, or it does: a write as any
				}
				t.Run(fmt.Sprintf("%s/%s/known=%v", profile, tt.name, known), func(t *testing.T) {
					r := newRig(t, profile, size).start()
					r.poison(bad, false)
					r.poison(tail, false)
					if known {
						r.read(0, size)
					}
					before := r.below()
					unshare, again := r.ino.Share(), r.ino.Share()
					err := tt.do(r.file)
					if !tt.refused {
						r.check(err)
						return
					}
					var refusal *RepairError
					if !errors.As(err, &refusal) || refusal.Step != "share" || Errno(err) != unix.EIO || !errors.Is(err, errShared) {
						t.Fatalf("%v, want a refusal that says why", err)
					}
					wantBytes(t, "the backing file", r.below(), before)
					unshare()
					unshare() // does nothing
					if err := tt.do(r.file); !errors.As(err, &refusal) {
						t.Fatalf("shared once more: %v", err)
					}
					again()
					r.check(tt.do(r.file))
					if log := r.told(); !strings.Contains(log, `"repair-failed"`) || !strings.Contains(log, "write whole pages") || !strings.Contains(log, "--protect=full") || strings.Contains(log, "at step share") {
						t.Errorf("told:\n%s", log)
					}
				})
			}
		}
	}
}

// TestWriteStopsAtThePageThatMayNotBeRewritten: what is in front is done.
func TestWriteStopsAtThePageThatMayNotBeRewritten(t *testing.T) {
	r := newRig(t, "dax", 6*pg).start()
	r.poison(rng(pg, 512), false)
	r.poison(rng(3*pg, 512), false)
	defer r.ino.Share()()
	n, err := r.file.Write(pattern(3 * pg)[:2*pg+100], pg, false, Caller{})
	if n != 2*pg || err != nil {
		t.Fatalf("write = %d, %v, want the two pages in front", n, err)
	}
	r.wantCleared(rng(pg, 2*pg))
}

// TestKernelWritesASharedFile: what the engine knew is out of date.
func TestKernelWritesASharedFile(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	want := without(pattern(4*pg), bad)
	wantBytes(t, "before", r.read(0, 4*pg), want)
	defer r.ino.Share()()
	wantBytes(t, "shared", r.read(0, 4*pg), want)
	fresh := bytes.Repeat([]byte{0xab}, pg)
	kernel := r.medium.Open(r.fd)
	_, err := kernel.Pwrite(fresh, pg, 0)
	r.check(err)
	copy(want[pg:], fresh)
	wantBytes(t, "after the kernel's write", r.read(0, 4*pg), want)
	if r.ino.Damaged() {
		t.Error("still damaged")
	}

	r.poison(bad, false)
	want = without(want, bad)
	wantBytes(t, "poisoned again", r.read(0, 4*pg), want)
	_, err = kernel.Pwrite(pattern(pg), pg, 0)
	r.check(err)
	r.write(pg+100, []byte("part")) // the page is known to be bad, and is not
	copy(want[pg:], pattern(pg))
	copy(want[pg+100:], "part")
	wantBytes(t, "after both writes", r.read(0, 4*pg), want)
}

// TestShareWaitsForTheRepair that is under way.
func TestShareWaitsForTheRepair(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg+512, 512), false)
	var sharing sync.WaitGroup
	r.onStep(func(at failpoint.Step) {
		switch at {
		case failpoint.IntentDurable:
			sharing.Go(func() { r.ino.Share() })
		case failpoint.IntentClosed:
			if r.ino.isShared() {
				t.Error("shared during a repair")
			}
		}
	})
	r.write(pg, []byte("part"))
	sharing.Wait()
	r.onStep(nil)
	if !r.ino.isShared() {
		t.Error("not shared")
	}
}

// TestSharedWithAnOpenRepair: the pages are written, the end fails, and then the
// kernel writes. Nothing newer is overwritten or cut off, neither while the file
// is shared nor afterwards.
func TestSharedWithAnOpenRepair(t *testing.T) {
	const size = 3*pg + 500
	tests := []struct {
		name   string
		fails  mediatest.Op
		write  int64        // where the application writes 40 bytes
		kernel ranges.Range // what the kernel writes afterwards
	}{
		{"the page", mediatest.Sync, pg + 140, rng(pg+1000, 500)},
		{"another page", mediatest.Sync, pg + 140, rng(2*pg, 10)},
		{"the tail page", mediatest.Truncate, size - 100, rng(3*pg+450, 50)},
		{"an append within the page", mediatest.Truncate, size - 100, rng(size, 100)},
		{"an append behind it", mediatest.Truncate, size - 100, rng(size, pg)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, m := foreign(t, size)
			r.check(m.Bad(r.fd, rng(pg+128, 64), rng(3*pg+64, 64)))
			r.read(0, size)
			m.Before(func(op mediatest.Op, _ ranges.Range) error {
				if op == tt.fails {
					return unix.EIO
				}
				return nil
			})
			fresh := bytes.Repeat([]byte{0xab}, 40)
			if _, err := r.file.Write(fresh, tt.write, false, Caller{}); Errno(err) != unix.EIO {
				t.Fatalf("write: %v, want EIO", err)
			}
			m.Before(nil)
			want := append(r.below()[:size:size], make([]byte, max(0, tt.kernel.End()-size))...) // written it is, if not to the end
			unshare := r.ino.Share()
			kernel := pattern(int(tt.kernel.Len))
			_, err := unix.Pwrite(r.fd, kernel, tt.kernel.Off)
			r.check(err)
			copy(want[tt.kernel.Off:], kernel)
			for range 2 {
				_, _ = r.file.Write(fresh, tt.write, false, Caller{}) // may be refused
				if got := r.below(); len(got) < len(want) {
					t.Fatalf("%d bytes left of %d", len(got), len(want))
				} else {
					wantBytes(t, "the backing file", got[:len(want)], want)
				}
				unshare()
			}
			r.write(tt.write, fresh)
			got := r.below()
			wantBytes(t, "in the end", got[:len(want)], want)
			if !isZero(got[len(want):]) {
				t.Error("not zero behind the end")
			}
			if n := len(r.journal.Intents()); n != 0 {
				t.Errorf("%d intents open", n)
			}
		})
	}
}
