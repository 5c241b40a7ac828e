package pmem

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Watch tells each time that the kernel's list may have changed, and closes the
// channel when ctx ends. It is told by the kernel, and looks for itself every
// interval, since not every addition is announced (facts: a write to the sysfs
// file, and disks whose list is fed by nobody). One value may stand for many
// changes. A disk that is gone is no change.
func (v *Volume) Watch(ctx context.Context, interval time.Duration) <-chan struct{} {
	changed := make(chan struct{}, 1)
	go func() { // ends with ctx
		defer close(changed)
		w := &watcher{last: map[string][]byte{}}
		for _, disk := range v.Disks() {
			w.open(v.kernel.badblocksPath(disk))
		}
		defer w.close()
		w.reread()
		for w.wait(ctx, interval) {
			if !w.reread() {
				continue
			}
			select {
			case changed <- struct{}{}:
			default: // one is waiting to be taken
			}
		}
	}()
	return changed
}

// watcher is the badblocks files of a volume, used by one goroutine.
type watcher struct {
	files []*os.File
	last  map[string][]byte // by path: what the file said
}

func (w *watcher) open(path string) {
	if f, err := os.Open(path); err == nil { // else the disk is gone
		w.files = append(w.files, f)
	}
}

func (w *watcher) close() {
	for _, f := range w.files {
		_ = f.Close() // only read from
	}
}

// reread also arms the notification again (fs/sysfs/file.c, kernfs_generic_poll).
// A file that can't be read is let go: poll would say at once and for ever that there is
// an error (fs/kernfs/file.c, kernfs_fop_poll, Linux 3.15 to 6.18; TestWatchLetsGoOfGone).
func (w *watcher) reread() (changed bool) {
	w.files = slices.DeleteFunc(w.files, func(f *os.File) bool {
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<16))
		if err != nil {
			_ = f.Close() // only read from
			return true
		}
		if !bytes.Equal(text, w.last[f.Name()]) {
			w.last[f.Name()], changed = text, true
		}
		return false
	})
	return changed
}

// wait returns after a notification, or the interval; false when ctx has ended.
func (w *watcher) wait(ctx context.Context, interval time.Duration) bool {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil { // no descriptor left: look at the interval only
		select {
		case <-ctx.Done():
			return false
		case <-time.After(interval):
			return true
		}
	}
	end := os.NewFile(uintptr(wake), "eventfd")
	defer end.Close()
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		_, _ = end.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) // it has room
	})
	defer func() {
		if !stop() {
			<-told // it still writes
		}
	}()
	fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}
	for _, f := range w.files {
		fds = append(fds, unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLPRI})
	}
	_, _ = unix.Poll(fds, int(interval.Milliseconds())) // EINTR: looking once more does no harm
	return ctx.Err() == nil
}
