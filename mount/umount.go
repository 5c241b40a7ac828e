package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long Unmount waits for a daemon to close its files.
const patience = 30 * time.Second

// courtesy is how long it waits after that for the process to end.
const courtesy = 5 * time.Second

// Unmount takes away the mendfs mount at mountpoint, running or dead. A mount
// in use is refused, as umount(8) does. When Unmount returns nil the daemon
// has closed everything and ended: the state directory can be used by others,
// and its filesystem unmounted.
func Unmount(mountpoint string) error {
	p, err := lookup(mountpoint)
	if err != nil {
		return notFound(err, mountpoint)
	}
	hangs := p.isMountRoot() && p.hangs()
	if hangs {
		err = p.abort()
	}
	dead := hangs || p.isDead()
	p.close() // an open descriptor would keep the mount busy
	if err != nil {
		return err
	}
	e, file := entryWhere(func(e entry) bool { return e.Dev == p.mount.Dev })
	switch {
	case p.mount.Type != FSType:
		if e, _ := entryWhere(func(e entry) bool { return e.Mountpoint == p.path && e.detached() }); e != nil {
			at, next := e.whereabouts()
			return failed(nil, next, "already unmounted: the mount at %s", at)
		}
		return usage("see the mounts with mendfs status", "nothing of mendfs is mounted at %s", p.path)
	case !p.isMountRoot():
		return usage("mendfs umount "+p.mount.Mountpoint, "%s is not a mountpoint, it lies in the mendfs mount at %s", p.path, p.mount.Mountpoint)
	}
	daemon := watch(e)
	defer daemon.close()
	err = whenIdle(func() error { return detach(p.path, dead) })
	switch {
	case errors.Is(err, unix.EBUSY):
		return failed(err, "end the programs that fuser -vm "+p.path+" lists", "%s is in use", p.path)
	case errors.Is(err, unix.EPERM):
		return failed(err, "ask the user who mounted it, or root", "%s can't be unmounted", p.path)
	case err != nil:
		return failed(err, "umount -l "+p.path, "%s can't be unmounted", p.path)
	}
	if e == nil {
		return nil
	}
	if err := e.awaitEnd(file); err != nil {
		return err
	}
	daemon.await()
	return nil
}

// entryWhere is the running mount that is so, and its file in the registry;
// nil if there is none that can be read.
func entryWhere(is func(entry) bool) (e *entry, file string) {
	for _, r := range registries() {
		all, err := r.entries()
		if err != nil {
			continue // it is not needed for unmounting
		}
		for _, e := range all {
			if is(e) {
				return &e, r.file(e)
			}
		}
	}
	return nil, ""
}

// watched is the process of a mount, by a pidfd; -1 if there is none to wait
// for (before Linux 5.3, or it is this very process).
type watched int

func watch(e *entry) watched {
	if e == nil || e.Pid == os.Getpid() {
		return -1
	}
	fd, err := unix.PidfdOpen(e.Pid, 0)
	if err != nil {
		return -1
	}
	return watched(fd)
}

// await returns when the process has ended, which closes the log in the state
// directory. One that goes on, since it does other things too, is not waited
// for any longer.
func (w watched) await() {
	if w < 0 {
		return
	}
	for end := time.Now().Add(courtesy); time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (w watched) close() {
	if w >= 0 {
		_ = unix.Close(int(w)) // a pidfd: nothing was written
	}
}

// awaitEnd waits until the mount's process has taken its entry off the list, file, or
// has died.
func (e entry) awaitEnd(file string) error {
	if endsWithin(file, endingTime) {
		return nil
	}
	if pid := e.elsewhere(); pid != 0 {
		return failed(nil, e.endElsewhere(pid), "%s is unmounted here, but still mounted for process %d, in another mount namespace, and served by pid %d", e.Mountpoint, pid, e.Pid)
	}
	if endsWithin(file, patience-endingTime) {
		return nil
	}
	return failed(nil, "see whether it is stopped (state T): ps -o pid,stat,wchan -p "+itoa(e.Pid)+"; and mendfs.log in "+e.State,
		"%s is unmounted, but its daemon (pid %d) has not ended within %v", e.Mountpoint, e.Pid, patience)
}

func endsWithin(file string, patience time.Duration) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := readEntry(file); errors.Is(err, fs.ErrNotExist) || errors.Is(err, errStale) {
			return true
		}
	}
	return false
}

// whenIdle unmounts, and lets what is over in a moment keep it in use: files are closed
// a little after close(2), and others look at mounts in passing.
func whenIdle(unmount func() error) error {
	err := unmount()
	for try := 0; errors.Is(err, unix.EBUSY) && try < 10; try++ {
		time.Sleep(50 * time.Millisecond)
		err = unmount()
	}
	return err
}

// detach unmounts path, at once (lazy: when its last user is gone). EBUSY says
// that it is in use.
func detach(path string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(path, flags)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	args := []string{"-u", path}
	if lazy {
		args = []string{"-u", "-z", path}
	}
	text, err := exec.Command("fusermount3", args...).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case strings.Contains(string(text), "busy"): // fusermount3 has one exit code for all failures
		return unix.EBUSY
	}
	return fmt.Errorf("fusermount3: %s: %w", strings.TrimSpace(string(text)), unix.EPERM)
}
