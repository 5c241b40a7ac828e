package pmem

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchLetsGoOfGone has a disk go away and come back whose file in /sys is watched: a
// loop device that was never used, since no pmem disk can go.
func TestWatchLetsGoOfGone(t *testing.T) {
	const add, remove = 0x4C80, 0x4C81 // LOOP_CTL_ADD, LOOP_CTL_REMOVE
	ctl, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no loop devices: ", err)
	}
	defer unix.Close(ctl)
	number := 1777
	for unix.IoctlSetInt(ctl, add, number) != nil {
		if number++; number == 1800 {
			t.Skip("no loop device can be made")
		}
	}
	w := &watcher{files: map[string]*os.File{}, last: map[string][]byte{}}
	defer w.close()
	path := fmt.Sprintf("/sys/block/loop%d/size", number)
	if !w.reread([]string{path}) || len(w.files) != 1 {
		t.Error("the file is not read")
	}
	if err := unix.IoctlSetInt(ctl, remove, number); err != nil {
		t.Fatal(err)
	}
	if !w.wait(context.Background(), time.Hour) {
		t.Error("it has ended")
	}
	if w.reread([]string{path}) || len(w.files) != 0 {
		t.Errorf("it is watched still, and poll says at once for ever that there is an error")
	}
	if err := unix.IoctlSetInt(ctl, add, number); err != nil {
		t.Fatal(err)
	}
	if w.reread([]string{path}); len(w.files) != 1 {
		t.Error("it is there again, and watched no more")
	}
	w.close()
	if err := unix.IoctlSetInt(ctl, remove, number); err != nil {
		t.Error(err)
	}
}
