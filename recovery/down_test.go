package recovery

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFailuresDontFlushTheDisk: of many calls that fail at once only some have the root
// directory synced.
func TestFailuresDontFlushTheDisk(t *testing.T) {
	const calls = 100
	r := newRig(t, "dax", pg).start()
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	r.check(err)
	defer unix.Close(watch)
	_, err = unix.InotifyAddWatch(watch, r.backing, unix.IN_OPEN|unix.IN_CLOSE_NOWRITE|unix.IN_ONLYDIR)
	r.check(err)
	for range calls {
		if r.engine.CheckDown(true) {
			t.Fatal("it is down")
		}
	}
	buf := make([]byte, calls*2*unix.SizeofInotifyEvent)
	n, err := unix.Read(watch, buf)
	r.check(err)
	asked := 0
	for ; n > 0; n -= unix.SizeofInotifyEvent { // events of the directory itself have no name
		if binary.NativeEndian.Uint32(buf[n-unix.SizeofInotifyEvent+4:])&unix.IN_OPEN != 0 {
			asked++
		}
	}
	if asked == 0 || asked == calls {
		t.Errorf("the root directory was asked %d times for %d failures", asked, calls)
	}
}
