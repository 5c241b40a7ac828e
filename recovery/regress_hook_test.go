package recovery

import (
	"bytes"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// scripted is a medium of which a test plays single calls; those that are nil
// go below. They are set while no I/O is under way.
type scripted struct {
	media.Medium
	pread   func(f media.File, b []byte, off int64) (int, error)
	pwrite  func(f media.File, b []byte, off int64) (int, error)
	salvage func(f media.File, b []byte, off int64) ([]ranges.Range, int64)
	sync    func(f media.File, full bool) error
	alloc   func(f media.File, mode uint32, off, n int64) error
}

// script puts a scripted medium between the engine and the one below.
func script(r *rig) *scripted {
	s := &scripted{}
	r.wrap = func(m media.Medium) media.Medium { s.Medium = m; return s }
	return s
}

// asBelow ends the play.
func (s *scripted) asBelow() { *s = scripted{Medium: s.Medium} }

func (s *scripted) Open(fd int) media.File { return scriptedFile{s.Medium.Open(fd), s} }

type scriptedFile struct {
	media.File
	script *scripted
}

func (f scriptedFile) Pread(b []byte, off int64) (int, error) {
	if play := f.script.pread; play != nil {
		return play(f.File, b, off)
	}
	return f.File.Pread(b, off)
}

func (f scriptedFile) Pwrite(b []byte, off int64, uid uint32) (int, error) {
	if play := f.script.pwrite; play != nil {
		return play(f.File, b, off)
	}
	return f.File.Pwrite(b, off, uid)
}

func (f scriptedFile) Salvage(b []byte, off int64) ([]ranges.Range, int64) {
	if play := f.script.salvage; play != nil {
		return play(f.File, b, off)
	}
	return f.File.Salvage(b, off)
}

func (f scriptedFile) Sync(full bool) error {
	if play := f.script.sync; play != nil {
		return play(f.File, full)
	}
	return f.File.Sync(full)
}

func (f scriptedFile) Allocate(mode uint32, off, n int64, uid uint32) error {
	if play := f.script.alloc; play != nil {
		return play(f.File, mode, off, n)
	}
	return f.File.Allocate(mode, off, n, uid)
}

// fullOncePunched plays a disk that takes the block that the punch rung frees,
// and has none for the write that follows.
func (s *scripted) fullOncePunched() {
	var punched atomic.Bool
	s.alloc = func(f media.File, mode uint32, off, n int64) error {
		err := f.Allocate(mode, off, n, 0)
		punched.Store(true)
		return err
	}
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		if punched.Load() {
			return 0, unix.ENOSPC
		}
		return f.Pwrite(b, off, 0)
	}
}

// withOpenRepair is a file of four pages with a repair of page 1 that could not be
// finished: the page was written, and can't be made durable.
func withOpenRepair(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	r.poison(rng(pg, pg), false)
	r.read(0, 4*pg)
	s.sync = func(media.File, bool) error { return unix.EIO }
	if _, err := r.file.Write(pattern(pg), pg, false, Caller{}); Errno(err) != unix.EIO {
		t.Fatalf("write: %v, want EIO", err)
	}
	s.asBelow()
	return r
}

// withOwedPage is a file of four pages of which page 1 was punched and could not
// be written: its image is all that is left of it. bad is what was lost of it
// before; want is what the file reads as.
func withOwedPage(t *testing.T) (r *rig, bad ranges.Range, want []byte) {
	t.Helper()
	r = newRig(t, "dax-5.18", 4*pg)
	s := script(r)
	r.start()
	bad = rng(pg+512, 512)
	r.poison(bad, false)
	want = r.read(0, 4*pg)
	s.fullOncePunched()
	r.mustFail(pg, filled(0xee, pg))
	s.asBelow()
	return r, bad, want
}

// meanwhile starts fn and waits for its end, unless the inode is locked so that
// fn has to wait for the caller. done is closed when fn has ended.
func (r *rig) meanwhile(done chan<- struct{}, fn func()) {
	ended := make(chan struct{})
	go func() {
		defer close(done)
		defer close(ended)
		fn()
	}()
	if r.ino.mu.TryRLock() {
		r.ino.mu.RUnlock()
		<-ended
	}
}

// foreign mounts over a medium that keeps no list of its errors, and keeps those
// over a remount.
func foreign(t *testing.T, size int) (*rig, *mediatest.Medium) {
	t.Helper()
	r, m := newRig(t, "", size), mediatest.New(ranges.LineSize)
	r.wrap = func(media.Medium) media.Medium { return m }
	return r.start(), m
}

// mustFail writes, and wants to hear that nothing was written.
func (r *rig) mustFail(off int64, b []byte) {
	r.t.Helper()
	if n, err := r.file.Write(b, off, false, Caller{}); err == nil || n != 0 {
		r.t.Fatalf("write [%d +%d) = %d, %v, want an error", off, len(b), n, err)
	}
}

// wantNoIntents wants the ledger or the journal to say that all intents are closed.
func (r *rig) wantNoIntents() {
	r.t.Helper()
	for _, in := range r.journal.Intents() {
		if !r.ledger.Closed(in.ID) {
			r.t.Errorf("intent %d of %v is open", in.ID, in.Range)
		}
	}
}

func (r *rig) wantSize(size int) {
	r.t.Helper()
	if n := len(r.below()); n != size {
		r.t.Errorf("the file has %d bytes, want %d", n, size)
	}
}

// wantRecorded fails if zeros are served where no live row says so.
func (r *rig) wantRecorded(at ranges.Range) {
	r.t.Helper()
	lost, reinit := r.live()
	for z := range lost.All() {
		reinit.Add(z)
	}
	if !reinit.Contains(at) {
		r.t.Errorf("%v is zero, and the ledger has only %v", at, reinit)
	}
}

// filled is n times the byte c.
func filled(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }
