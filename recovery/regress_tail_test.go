package recovery

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// uncut is a medium that refuses to make a file shorter while refuse is set.
type uncut struct {
	media.Medium
	refuse bool
}

func (u *uncut) Open(fd int) media.File { return uncutFile{u.Medium.Open(fd), u} }

type uncutFile struct {
	media.File
	medium *uncut
}

func (f uncutFile) Truncate(size int64) error {
	if f.medium.refuse {
		return unix.EIO
	}
	return f.File.Truncate(size)
}

// TestSizeOfAnUnfinishedTailRepair: the page is written and can't be cut back:
// nobody sees the size that it has in between, until it can.
func TestSizeOfAnUnfinishedTailRepair(t *testing.T) {
	const size = 3*pg + 1000
	r := newRig(t, "dax", size)
	u := &uncut{}
	r.wrap = func(m media.Medium) media.Medium { u.Medium = m; return u }
	r.start()
	r.poison(rng(3*pg, 512), false)
	want := without(pattern(size), rng(3*pg, 512))
	wantBytes(t, "before", r.read(0, size), want)
	u.refuse = true
	r.mustFail(3*pg+600, []byte("x"))
	r.wantSize(4 * pg)
	if n := r.ino.Size(4 * pg); n != size {
		t.Errorf("programs see a size of %d", n)
	}
	for _, off := range []int64{0, 3 * pg, size - 10, size, size + 10} {
		got := make([]byte, 5*pg)
		n, err := r.file.Read(got, off, Caller{})
		if err != nil || int64(n) != max(0, size-off) {
			t.Errorf("read from %d: %d, %v", off, n, err)
		}
	}
	u.refuse = false
	copy(want[3*pg+600:], "x")
	wantBytes(t, "afterwards", r.read(0, size), want)
	r.wantSize(size)
	r.wantNoIntents()
}

// TestTailIsNotCutUnseen: a file that was shared since its tail page was repaired
// may have been made longer by others. What can't be read is not cut off.
func TestTailIsNotCutUnseen(t *testing.T) {
	const size = 3*pg + 1000
	r := newRig(t, "dax", size)
	s := script(r)
	u := &uncut{}
	under := r.wrap
	r.wrap = func(m media.Medium) media.Medium { u.Medium = under(m); return u }
	r.start()
	r.poison(rng(3*pg, 512), false)
	r.read(0, size)
	u.refuse = true
	r.mustFail(3*pg+600, []byte("x"))
	u.refuse = false
	unshare := r.ino.Share()
	appended := filled(0xab, pg-1000) // through passthrough, up to the end of the page
	if _, err := unix.Pwrite(r.fd, appended, size); err != nil {
		t.Fatal(err)
	}
	unshare()
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		if off >= size {
			return 0, unix.EIO
		}
		return f.Pread(b, off)
	}
	r.mustFail(3*pg+600, []byte("y"))
	r.wantSize(4 * pg)
	s.asBelow()
	r.write(3*pg+600, []byte("y"))
	r.wantSize(4 * pg)
	wantBytes(t, "what was appended", r.read(size, int64(len(appended))), appended)
	r.wantNoIntents()
}
