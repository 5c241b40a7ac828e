package recovery

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// TestSeekSeesNoHoleOfOurs: a page that the punch rung freed is no hole to
// programs, not in passing, and not when nothing could be written there: its bytes
// are in the journal.
func TestSeekSeesNoHoleOfOurs(t *testing.T) {
	for _, full := range []bool{false, true} {
		r := newRig(t, "dax-5.18", 4*pg)
		s := script(r)
		r.start()
		r.poison(rng(pg+512, 512), false)
		want := without(pattern(4*pg), rng(pg+512, 512))
		wantBytes(t, "before", r.read(0, 4*pg), want)
		data := func(when string) {
			for _, at := range []int64{0, pg, pg + 5, 2 * pg} {
				if off, err := r.file.Seek(at, unix.SEEK_DATA); off != at || err != nil {
					t.Errorf("%s: data from %d is at %d, %v", when, at, off, err)
				}
				if off, err := r.file.Seek(at, unix.SEEK_HOLE); off != 4*pg || err != nil {
					t.Errorf("%s: the hole from %d is at %d, %v", when, at, off, err)
				}
			}
			if _, err := r.file.Seek(4*pg, unix.SEEK_DATA); err != unix.ENXIO {
				t.Errorf("%s: data behind the end: %v", when, err)
			}
		}
		done := make(chan struct{})
		if full {
			close(done)
			s.fullOncePunched()
			r.mustFail(pg+1024, []byte("part"))
		} else {
			s.alloc = func(f media.File, mode uint32, off, n int64) error {
				err := f.Allocate(mode, off, n, 0)
				r.meanwhile(done, func() { data("meanwhile") })
				return err
			}
			r.write(pg+1024, []byte("part"))
			copy(want[pg+1024:], "part")
		}
		<-done
		data("afterwards")
		s.asBelow()
		wantBytes(t, "afterwards", r.read(0, 4*pg), want)
	}
}
