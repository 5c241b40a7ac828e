package recovery

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/media"
)

// What the filesystem refuses that is no I/O of the engine's: the caller has met it, and
// asks what it means.

// CheckDown reports whether the filesystem as a whole is down, and tells of it as an
// outage. It may wait for what is not durable of the root directory: ext4 that has shut
// down goes on to open and list directories, and refuses fsync (Linux 6.1 and 6.12;
// TestShutDown in tests/lab). Where the device is gone it may say so once, and have nothing
// to write then (ext4 on 6.1, TestDeviceGone): what fails within a minute belongs together.
// Of failures that come often an answer that it is alive is good for aliveFor: a program that
// reads what is lost, in strict semantics, would have a disk flushed for each page.
func (e *Engine) CheckDown(often bool) bool {
	now := time.Now()
	if often && now.UnixNano()-e.rootAlive.Load() < int64(aliveFor) {
		return e.outage.isOn(now)
	}
	err := e.askRoot()
	if !isDown(err) {
		e.rootAlive.Store(now.UnixNano())
		return e.outage.isOn(now)
	}
	e.tellOutage(event.Event{Event: event.Outage, FS: e.FS, Source: e.Medium.Source()}, err)
	return true
}

// mayBeDown is CheckDown for those who have nothing to tell.
func (e *Engine) mayBeDown() bool {
	return e.outage.isOn(time.Now()) || isDown(e.askRoot())
}

func (e *Engine) askRoot() error {
	root, err := unix.Openat(e.Root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the root directory: %w", err)
	}
	defer unix.Close(root)
	if err := media.Alive(root); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st); err != nil {
		return fmt.Errorf("statx of the root directory: %w", err)
	}
	if err := unix.Fsync(root); err != nil {
		return fmt.Errorf("fsync of the root directory: %w", err)
	}
	return nil
}

// MetadataError tells that a file, or something in a directory, can't be had of a
// filesystem that goes on.
func (e *Engine) MetadataError(path string, dev, ino uint64, err error) {
	e.Events.Emit(event.Event{
		Event: event.MetadataError, FS: e.FS, Path: path, Ino: ino, Dev: fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)),
		Source: e.Medium.Source(), Action: "passed-through", Error: err.Error(),
	})
}

// IsReadOnlyBelow reports whether the filesystem can't be written now.
func (e *Engine) IsReadOnlyBelow() bool { return isReadOnly(e.Root) }
