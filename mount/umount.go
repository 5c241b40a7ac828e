package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long Unmount waits for a daemon to close its files.
const patience = 30 * time.Second

// Unmount takes away the mendfs mount at mountpoint, running or dead. A mount
// in use is refused, as umount(8) does. When Unmount returns nil the daemon
// has closed everything, and the state directory can be used by others.
func Unmount(mountpoint string) error {
	p, err := lookup(mountpoint)
	if err != nil {
		return notThere(err, "mountpoint", mountpoint)
	}
	dead := p.isDead()
	p.close() // an open descriptor would keep the mount busy
	switch {
	case p.mount.Type != FSType:
		return usage("see the mounts with mendfs status", "nothing of mendfs is mounted at %s", p.path)
	case !p.isMountRoot():
		return usage("mendfs umount "+p.mount.Mountpoint, "%s is not a mountpoint, it lies in the mendfs mount at %s", p.path, p.mount.Mountpoint)
	}
	file, running := entryOf(p.mount.Dev)
	err = detach(p.path, dead)
	switch {
	case errors.Is(err, unix.EBUSY):
		return failed(err, "end the programs that fuser -vm "+p.path+" lists", "%s is in use", p.path)
	case errors.Is(err, unix.EPERM):
		return failed(err, "ask the user who mounted it, or root", "%s can't be unmounted", p.path)
	case err != nil:
		return failed(err, "umount -l "+p.path, "%s can't be unmounted", p.path)
	}
	if !running {
		return nil
	}
	return awaitEnd(file, p.path)
}

// entryOf is the registry's file on the mount whose FUSE filesystem is dev, if
// there is one that can be read.
func entryOf(dev string) (file string, ok bool) {
	for _, r := range registries() {
		all, err := r.entries()
		if err != nil {
			continue // it is not needed for unmounting
		}
		for _, e := range all {
			if e.Dev == dev {
				return r.file(e.Mountpoint), true
			}
		}
	}
	return "", false
}

// awaitEnd waits until the mount's process has taken its entry off the list, or
// has died.
func awaitEnd(file, mountpoint string) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := readEntry(file); errors.Is(err, fs.ErrNotExist) || errors.Is(err, errStale) {
			return nil
		}
	}
	return failed(nil, "see what it waits for in mendfs.log in its state directory", "%s is unmounted, but its daemon has not ended within %v", mountpoint, patience)
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
