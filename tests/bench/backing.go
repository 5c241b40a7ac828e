package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// backing is a filesystem in memory, made for the run.
type backing struct {
	name string
	root string
	undo []func() error
}

// newBacking makes one below dir: tmpfs, or ext4 on a loop device over tmpfs.
func newBacking(kind, dir string, bytes int64) (*backing, error) {
	b := &backing{name: kind, root: filepath.Join(dir, kind)}
	if err := os.Mkdir(b.root, 0o755); err != nil {
		return nil, err
	}
	var err error
	switch kind {
	case "tmpfs":
		err = b.tmpfs(b.root, bytes)
	case "ext4":
		err = b.ext4(filepath.Join(dir, kind+".image"), bytes)
	default:
		err = fmt.Errorf("no backing is called %q: use tmpfs or ext4", kind)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *backing) tmpfs(at string, bytes int64) error {
	if err := unix.Mount("bench", at, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", bytes)); err != nil {
		return fmt.Errorf("mounting a tmpfs at %s (root can): %w", at, err)
	}
	b.undo = append(b.undo, func() error { return takeAway(at) })
	return nil
}

func (b *backing) ext4(under string, bytes int64) error {
	if err := os.Mkdir(under, 0o755); err != nil {
		return err
	}
	if err := b.tmpfs(under, bytes+bytes/4); err != nil {
		return err
	}
	image := filepath.Join(under, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, bytes); err != nil {
		return err
	}
	if err := run("", "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image); err != nil {
		return err
	}
	device, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	loop := strings.TrimSpace(string(device))
	b.undo = append(b.undo, func() error { return run("", "losetup", "--detach", loop) })
	if err := unix.Mount(loop, b.root, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", loop, err)
	}
	b.undo = append(b.undo, func() error { return takeAway(b.root) })
	return nil
}

// settle writes back what is dirty, so that it is not done in the next measurement.
func (b *backing) settle() error {
	if b.name == "tmpfs" {
		return nil
	}
	fd, err := unix.Open(b.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(fd), unix.Close(fd))
}

// close takes it away.
func (b *backing) close() error {
	var errs []error
	for i := len(b.undo) - 1; i >= 0; i-- {
		errs = append(errs, b.undo[i]())
	}
	return errors.Join(errs...)
}

// takeAway unmounts; what is still in use is detached, which is an error.
func takeAway(at string) (err error) {
	for range 50 {
		if err = unix.Unmount(at, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("unmounting %s: %w; detaching it", at, err), unix.Unmount(at, unix.MNT_DETACH))
	}
	return nil
}

// run runs a program in dir; its output is the error's.
func run(dir string, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_OPTIONAL_LOCKS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, firstLine(string(out)))
	}
	return nil
}
