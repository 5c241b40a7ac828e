package recovery

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestFirstTouchDuringAWriteElsewhere: the first touch of latent poison loses the
// line only, though another page of the file is written before it is settled, and
// wherever in the page the line is.
func TestFirstTouchDuringAWriteElsewhere(t *testing.T) {
	for _, bad := range []ranges.Range{rng(pg, 64), rng(pg+640, 64), rng(2*pg-64, 64)} {
		for _, from := range []int64{0, pg, pg + 640} {
			if from >= bad.Off {
				continue // the simulation lists at once what it can't even begin to read
			}
			t.Run(fmt.Sprintf("%v/from=%d", bad, from), func(t *testing.T) {
				r := newRig(t, "dax", 4*pg)
				s := script(r)
				r.start()
				r.poison(bad, true)
				want := pattern(4 * pg)
				calls := 0
				s.pread = func(f media.File, b []byte, off int64) (int, error) {
					n, err := f.Pread(b, off)
					if calls++; calls == 1 {
						r.write(3*pg, []byte("newer"))
						copy(want[3*pg:], "newer")
					}
					return n, err
				}
				got := r.read(from, 4*pg-from)
				want = without(want, bad)
				wantBytes(t, "the reader gets", got[:pg], want[from:from+pg])
				s.asBelow()
				wantBytes(t, "again", r.read(0, 4*pg), want)
				lost, _ := r.live()
				wantSet(t, "lost", lost, bad)
			})
		}
	}
}

// TestFirstTouchInOtherHands: the second reader of a page settles first, after
// another page was written, and loses no more than the first one did.
func TestFirstTouchInOtherHands(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+640, 64)
	r.poison(bad, true)
	want := pattern(4 * pg)
	copy(want[3*pg:], "newer")
	want = without(want, bad)
	var second sync.WaitGroup
	calls := 0
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		n, err := f.Pread(b, off)
		if calls++; calls == 2 { // the first reader has asked for what is behind the line
			s.pread = nil
			r.write(3*pg, []byte("newer"))
			second.Go(func() { wantBytes(t, "the second reader gets", r.read(pg, pg), want[pg:2*pg]) })
			for r.ino.mu.TryRLock() { // until it waits for the inode
				r.ino.mu.RUnlock()
				time.Sleep(time.Millisecond)
			}
		}
		return n, err
	}
	wantBytes(t, "the first reader gets", r.read(0, 4*pg), want)
	second.Wait()
	lost, _ := r.live()
	wantSet(t, "lost", lost, bad)
}

// TestHeldPageIsLetGo: what a first touch gave is not served over what was
// written to the page since.
func TestHeldPageIsLetGo(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	bad := rng(pg+640, 64)
	r.poison(bad, true)
	want := pattern(4 * pg)
	copy(want[pg+100:], "newer")
	calls := 0
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		n, err := f.Pread(b, off)
		if calls++; calls == 2 { // below the engine's known poison, as far as a write can tell
			_, err := unix.Pwrite(r.fd, []byte("newer"), pg+100)
			r.check(err)
			r.ino.changed(rng(pg+100, 5))
		}
		return n, err
	}
	got := r.read(0, 4*pg)
	lost, reinit := r.live()
	for _, z := range append(lost.Slice(), reinit.Slice()...) {
		clear(want[z.Off:z.End()])
	}
	wantBytes(t, "the reader gets", got, want)
	wantBytes(t, "again", r.read(0, 4*pg), want)
}

// TestFirstTouchesUnderLoad: many pages are touched for the first time while all
// others are written.
func TestFirstTouchesUnderLoad(t *testing.T) {
	const pages = 64
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRig(t, "dax", pages*pg).start()
	old, bad := pattern(pages*pg), ranges.Of()
	for page := int64(0); page < pages; page += 2 {
		line := rng(page*pg+64*(1+random.Int64N(63)), 64) // a read that begins on it learns no more than the sector
		r.poison(line, true)
		bad.Add(line)
	}
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range int64(2) {
		writers.Go(func() {
			for page := 2*w + 1; !stop.Load(); page = (page + 4) % pages {
				r.write(page*pg, old[page*pg:page*pg+3000])
			}
		})
	}
	for n := range int64(4) {
		readers.Go(func() {
			at := rng(n*pages/4*pg, pages/4*pg)
			wantBytes(t, fmt.Sprintf("seed %d, %v", seed, at), r.read(at.Off, at.Len), without(old, bad.Slice()...)[at.Off:at.End()])
		})
	}
	readers.Wait()
	stop.Store(true)
	writers.Wait()
	lost, _ := r.live()
	wantSet(t, fmt.Sprintf("seed %d: lost", seed), lost, bad.Slice()...)
}

// asked is a medium that calls before ahead of each stat.
type asked struct {
	media.Medium
	before func()
}

func (a *asked) Open(fd int) media.File { return askedFile{a.Medium.Open(fd), a} }

type askedFile struct {
	media.File
	medium *asked
}

func (f askedFile) Stat() (media.Stat, error) {
	f.medium.before()
	return f.File.Stat()
}

// TestReadAtTheEndRacesWithAnAppend: it finds out nothing, and leaves the file on
// the path without a lock.
func TestReadAtTheEndRacesWithAnAppend(t *testing.T) {
	for _, size := range []int64{pg + 700, 2 * pg} {
		for _, latent := range []bool{false, true} { // elsewhere
			t.Run(fmt.Sprintf("size=%d/latent=%v", size, latent), func(t *testing.T) {
				r := newRig(t, "dax", int(size))
				a := &asked{before: func() {}}
				r.wrap = func(m media.Medium) media.Medium { a.Medium = m; return a }
				r.start()
				if latent {
					r.poison(rng(0, 64), true)
				}
				a.before = func() { // the read is done, and short
					a.before = func() {}
					r.write(size, filled(0xab, 500))
				}
				got := make([]byte, 8*pg)
				n, err := r.file.Read(got, pg, Caller{})
				want := append(pattern(int(size)), filled(0xab, 500)...)[pg:]
				if err != nil || n != len(want) {
					t.Fatalf("read: %d, %v", n, err)
				}
				wantBytes(t, "the reader gets", got[:n], want)
				if r.ino.damage.Load() != nil {
					t.Error("the inode has damage of which nothing is known")
				}
			})
		}
	}
}
