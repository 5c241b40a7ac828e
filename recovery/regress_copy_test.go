package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// another opens a second file of the rig, of the given content.
func (r *rig) another(name string, content []byte) *File {
	r.t.Helper()
	path := filepath.Join(r.backing, name)
	r.check(os.WriteFile(path, content, 0o644))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	r.check(err)
	r.t.Cleanup(func() { _ = unix.Close(fd) })
	return r.engine.Open(r.engine.NewInode(fd), fd)
}

// TestCopyRacesWithAWrite: zeros that were copied from lost bytes are not
// recorded over what somebody else has written there since.
func TestCopyRacesWithAWrite(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	dst := r.another("copy", filled(0xee, 4*pg))
	lost := rng(pg+512, 512)
	r.poison(lost, false)
	r.read(0, 4*pg)
	newer, done := filled(0xab, 512), make(chan bool)
	calls := 0
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		n, err := f.Pwrite(b, off, 0)
		if calls++; calls > 1 {
			return n, err
		}
		go func() {
			defer close(done)
			if n, err := dst.Write(newer, lost.Off, false, Caller{}); n != len(newer) || err != nil {
				t.Errorf("write: %d, %v", n, err)
			}
		}()
		if dst.ino.mu.TryRLock() { // otherwise it has to wait for us
			dst.ino.mu.RUnlock()
			<-done
		}
		return n, err
	}
	if n, err := Copy(dst, 0, r.file, 0, 4*pg, Caller{}); n != 4*pg || err != nil {
		t.Fatalf("copy: %d, %v", n, err)
	}
	<-done
	want := pattern(4 * pg)
	copy(want[lost.Off:], newer)
	got := make([]byte, 4*pg)
	if n, err := dst.Read(got, 0, Caller{}); n != len(got) || err != nil {
		t.Fatalf("read: %d, %v", n, err)
	}
	wantBytes(t, "the copy", got, want)
	if dst.ino.Damaged() {
		t.Errorf("the ledger still has %v of the copy", dst.ino.damage.Load().reinitWithin(lost))
	}
}

// TestCopyWhileTheSourceIsRewritten: what was zero when it was copied is recorded,
// though the source has new data by the time of the record.
func TestCopyWhileTheSourceIsRewritten(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	s := script(r)
	r.start()
	dst := r.another("copy", filled(0xee, 4*pg))
	lost := rng(pg+512, 512)
	r.poison(lost, false)
	r.read(0, 4*pg)
	calls := 0
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		if calls++; calls == 1 {
			r.write(pg, filled(0xab, pg))
		}
		return f.Pwrite(b, off, 0)
	}
	if n, err := Copy(dst, 0, r.file, 0, 4*pg, Caller{}); n != 4*pg || err != nil {
		t.Fatalf("copy: %d, %v", n, err)
	}
	got := make([]byte, 4*pg)
	if n, err := dst.Read(got, 0, Caller{}); n != len(got) || err != nil {
		t.Fatalf("read: %d, %v", n, err)
	}
	wantBytes(t, "the copy", got, without(pattern(4*pg), lost))
	if d := dst.ino.damage.Load(); d == nil || len(d.reinitWithin(lost)) != 1 {
		t.Error("zeros that stand for lost bytes are not recorded")
	}
}

// TestCopyOverLoss: zeros that stand for lost bytes are recorded where they are copied
// over bytes that were lost, too, whether or not those are there again by then.
func TestCopyOverLoss(t *testing.T) {
	for _, gone := range []bool{false, true} {
		r := newRig(t, "dax", 4*pg).start()
		from, to := rng(512, 512), rng(2*pg+512, 512)
		r.poison(from, false)
		r.read(0, 4*pg)
		r.write(0, pattern(64)) // repairs the page
		r.poison(to, false)
		r.read(0, 4*pg)
		if gone {
			r.check(r.sim.Clear())
			r.engine.Recheck()
		}
		if n, err := Copy(r.file, 2*pg, r.file, 0, pg, Caller{}); n != pg || err != nil {
			t.Fatalf("gone %v: copy: %d, %v", gone, n, err)
		}
		want := without(pattern(4*pg), from)
		copy(want[2*pg:], want[:pg])
		wantBytes(t, "the copy", r.read(0, 4*pg), want)
		lost, reinit := r.live()
		wantSet(t, "lost", lost)
		wantSet(t, "reinitialized", reinit, from, to)
	}
}
