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
	w := &watcher{files: map[string]*os.File{}, last: map[string][]byte{}}
	w.reread(v.lists()) // before who calls looks for himself: what comes then is a change
	go func() {         // ends with ctx
		defer close(changed)
		defer w.close()
		for w.wait(ctx, interval) {
			if !w.reread(v.lists()) {
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

// lists is the badblocks files of the disks that the volume lies on now.
func (v *Volume) lists() (paths []string) {
	_, _ = v.remap() // on error it is where it was
	for _, disk := range v.Disks() {
		paths = append(paths, v.kernel.badblocksPath(disk))
	}
	return paths
}

// watcher is the badblocks files of a volume, by path, used by one goroutine.
type watcher struct {
	files map[string]*os.File
	last  map[string][]byte // what the file said
}

func (w *watcher) close() {
	for path := range w.files {
		w.letGo(path)
	}
}

func (w *watcher) letGo(path string) {
	if f := w.files[path]; f != nil {
		_ = f.Close() // only read from
	}
	delete(w.files, path)
}

// reread also arms the notification again (fs/sysfs/file.c, kernfs_generic_poll).
// A file that can't be read is let go, and opened anew the next time: poll would say at
// once and for ever that there is an error (fs/kernfs/file.c, kernfs_fop_poll, Linux 3.15
// to 6.18; TestWatchLetsGoOfGone).
func (w *watcher) reread(paths []string) (changed bool) {
	for path := range w.files {
		if !slices.Contains(paths, path) {
			w.letGo(path)
		}
	}
	for _, path := range paths {
		text, err := w.read(path)
		if err != nil {
			w.letGo(path)
		} else if !bytes.Equal(text, w.last[path]) {
			w.last[path], changed = text, true
		}
	}
	return changed
}

func (w *watcher) read(path string) ([]byte, error) {
	if w.files[path] == nil {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		w.files[path] = f
	}
	return io.ReadAll(io.NewSectionReader(w.files[path], 0, 1<<16))
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
