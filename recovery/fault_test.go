package recovery

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestAnyCallOfARepairFails fails each call of a part-page and a tail-page repair
// in turn, for good or once, and goes on, remounts or crashes. Afterwards a byte
// is what was written, what was there before, or zero and in the ledger where
// the poison was; the size is one of the two; and no neighbour is lost (P3, P4).
func TestAnyCallOfARepairFails(t *testing.T) {
	for _, errno := range []error{unix.EIO, unix.ENOSPC} {
		for _, after := range []string{"go on", "remount", "crash"} {
			for _, length := range []int{1, 1000} {
				for call := range 40 {
					failCall(t, errno, after, call, length)
				}
			}
		}
	}
}

func failCall(t *testing.T, errno error, after string, call, length int) {
	t.Helper()
	what := fmt.Sprintf("%v at call %d for %d, then %s", errno, call, length, after)
	const size = 3*pg + 500
	r := newRig(t, "", size)
	var m *mediatest.Medium
	r.wrap = func(media.Medium) media.Medium {
		if m == nil {
			m = mediatest.New(64)
		}
		return m
	}
	r.start()
	defer r.stop()
	bad := []ranges.Range{rng(pg+128, 64), rng(3*pg+64, 64)}
	r.check(m.Bad(r.fd, bad...))
	before := without(pattern(size), bad...)
	wantBytes(t, what, r.read(0, size), before)
	calls := 0
	m.Before(func(mediatest.Op, ranges.Range) error {
		if calls++; calls > call && calls <= call+length {
			return errno
		}
		return nil
	})
	fresh := bytes.Repeat([]byte{0xAB}, 40)
	writes := []int64{pg + 140, size - 20}
	for _, at := range writes { // either outcome is right
		_, _ = r.file.Write(fresh, at, false, Caller{})
	}
	m.Before(nil)
	switch after {
	case "remount":
		r.remount()
	case "crash":
		r.crash()
		r.start()
	}
	got := make([]byte, size+100)
	n, err := r.file.Read(got, 0, Caller{})
	if err != nil || n < size || n > size+20 {
		t.Fatalf("%s: read %d, %v", what, n, err)
	}
	lost, reinit := r.live()
	for i, b := range got[:n] {
		at := rng(int64(i), 1)
		old := byte(0)
		if i < size {
			old = before[i]
		}
		written := false
		for _, w := range writes {
			written = written || rng(w, 40).Contains(at)
		}
		zeroed := ranges.Of(bad...).Overlaps(at) && (lost.Overlaps(at) || reinit.Overlaps(at) || written)
		if b != old && !(written && b == 0xAB) || b == 0 && i < size && !zeroed {
			t.Fatalf("%s: byte %d is %#x, was %#x", what, i, b, old)
		}
	}
}
