package recovery

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// appending is an open of the file as of one with chattr +a: each write goes to
// the end.
func (r *rig) appending() *File {
	r.t.Helper()
	fd, err := unix.Open(r.path(), unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0)
	r.check(err)
	r.t.Cleanup(func() { _ = unix.Close(fd) })
	return r.engine.Open(r.ino, fd)
}

// TestAppendCutShortIsNotRepeated: what was appended of a write is not appended
// again with the rest of it.
func TestAppendCutShortIsNotRepeated(t *testing.T) {
	for _, then := range []error{nil, unix.EIO, unix.ENOSPC} {
		for _, verify := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/verify=%v", then, verify), func(t *testing.T) {
				r := newRig(t, "dax", pg)
				r.verify = verify
				s := script(r)
				r.start()
				f := r.appending()
				calls := 0
				s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
					if calls++; calls == 1 {
						return f.Pwrite(b[:100], off, 0)
					} else if then != nil {
						return 0, then
					}
					return f.Pwrite(b, off, 0)
				}
				fresh := bytes.Repeat([]byte{0xab}, 300)
				n, err := f.Write(fresh, pg, false, Caller{})
				if n < 100 || err != nil {
					t.Errorf("write: %d, %v", n, err)
				}
				wantBytes(t, "the file", r.below(), append(pattern(pg), fresh[:n]...))
			})
		}
	}
}

// TestAppendOverABadTail: the tail page can't be rewritten, and no copy of it is
// appended.
func TestAppendOverABadTail(t *testing.T) {
	for _, profile := range []string{"dax", "dax-5.18"} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/known=%v", profile, known), func(t *testing.T) {
				const size = pg + 700
				r := newRig(t, profile, size).start()
				r.poison(rng(pg, 512), false)
				if known {
					r.read(0, size)
				}
				if n, err := r.appending().Write([]byte("line"), size, false, Caller{}); n != 0 || err == nil {
					t.Errorf("write: %d, %v, want an error", n, err)
				} else if known && !strings.Contains(err.Error(), "chattr -a") {
					t.Errorf("%v does not say what to do", err)
				}
				wantBytes(t, "the file", r.below(), pattern(size))
				r.write(size, []byte("line"))
				want := append(without(pattern(size), rng(pg, 512)), "line"...)
				wantBytes(t, "the file afterwards", r.read(0, size+4), want)
			})
		}
	}
}
