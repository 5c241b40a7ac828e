package recovery

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// TestVerifyWritesCutShort: of a write that a full disk cuts short, what is said
// to be written was read back, too.
func TestVerifyWritesCutShort(t *testing.T) {
	for _, hurt := range []bool{false, true} {
		t.Run(fmt.Sprintf("hurt=%v", hurt), func(t *testing.T) {
			r := newRig(t, "dax", 4*pg)
			r.verify = true
			s := script(r)
			r.start()
			if hurt {
				r.poison(rng(3*pg, 512), false)
				r.read(0, 4*pg)
			}
			r.poison(rng(pg+128, 64), true)
			s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
				if off >= 2*pg {
					return 0, unix.ENOSPC
				}
				return f.Pwrite(b[:min(int64(len(b)), 2*pg-off)], off, 0)
			}
			fresh := bytes.Repeat([]byte{0xab}, 3*pg)
			if n, err := r.file.Write(fresh, 0, false, Caller{}); n != 2*pg || err != nil {
				t.Errorf("write: %d, %v, want what fits", n, err)
			}
			if left := r.left(rng(0, 2*pg)); !left.Empty() {
				t.Errorf("poison left: %v", left)
			}
			wantBytes(t, "what fits", r.read(0, 2*pg), fresh[:2*pg])
			lost, reinit := r.live()
			lost.Remove(rng(3*pg, pg))
			wantSet(t, "lost", lost)
			wantSet(t, "reinitialized", reinit)
		})
	}
}

// TestVerifyWritesRepairsAFileOpenForWriting: a whole page needs no reading.
func TestVerifyWritesRepairsAFileOpenForWriting(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	r.verify = true
	r.start()
	r.poison(rng(pg, 512), false)
	r.read(0, 4*pg)
	fd, err := unix.Open(r.path(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	r.check(err)
	defer unix.Close(fd)
	fresh := bytes.Repeat([]byte{0xab}, pg)
	if n, err := r.engine.Open(r.ino, fd).Write(fresh, pg, false, Caller{}); n != pg || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	wantBytes(t, "the page", r.read(pg, pg), fresh)
	if left := r.left(rng(0, 4*pg)); !left.Empty() || r.ino.Damaged() {
		t.Errorf("poison left: %v, damaged: %v", left, r.ino.Damaged())
	}
}

// TestOpenRepairOfASharedFileIsNotRewritten: P4. The repair was written while the
// kernel might write the file, too, and could not be finished; what the kernel
// wrote since is newer, though nobody shares the file any more.
func TestOpenRepairOfASharedFileIsNotRewritten(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	r.verify = true
	s := script(r)
	r.start()
	r.poison(rng(pg, 512), false)
	r.read(0, 4*pg)
	unshare := r.ino.Share()
	s.sync = func(media.File, bool) error { return unix.EIO }
	if _, err := r.file.Write(bytes.Repeat([]byte{0xab}, pg), pg, false, Caller{}); Errno(err) != unix.EIO {
		t.Fatalf("write: %v, want EIO", err)
	}
	s.asBelow()
	newer := bytes.Repeat([]byte{0xcd}, pg)
	_, err := unix.Pwrite(r.fd, newer, pg) // past the engine
	r.check(err)
	unshare()
	wantBytes(t, "the newer page", r.read(pg, pg), newer)
	if r.ino.Damaged() {
		t.Error("the repair is not finished")
	}
}

// TestVerifiedWriteOfASharedFileIsNotRepeated: the share ends between the write
// and the look at it.
func TestVerifiedWriteOfASharedFileIsNotRepeated(t *testing.T) {
	r := newRig(t, "dax", 4*pg)
	r.verify = true
	s := script(r)
	r.start()
	unshare := r.ino.Share()
	newer := bytes.Repeat([]byte{0xcd}, pg)
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		n, err := f.Pwrite(b, off, 0)
		_, past := unix.Pwrite(r.fd, newer, pg)
		r.check(past)
		s.pwrite = nil
		unshare()
		return n, err
	}
	r.write(pg, bytes.Repeat([]byte{0xab}, pg))
	wantBytes(t, "the newer page", r.read(pg, pg), newer)
}

// TestOthersOpenRepairIsNotWaitedFor: while some repair somewhere is unfinished,
// reads of other damaged files go side by side, and count as no writes.
func TestOthersOpenRepairIsNotWaitedFor(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg, 512), false)
	r.read(0, 4*pg)
	r.engine.pin(new(Inode), "another")
	defer r.engine.unpin("another")
	epoch, writes := r.ino.epoch.Load(), r.ino.writes.Load()
	r.read(0, 4*pg)
	if r.ino.epoch.Load() != epoch || r.ino.writes.Load() != writes {
		t.Error("a read of what is known took the file exclusively")
	}
}
