package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A server that is killed while one of its threads is in the kernel, waiting for a
// page that an unanswered request of its own mount has locked
// (FUSE_NOTIFY_INVAL_INODE, Linux 6.18), never ends: /dev/fuse stays open, and
// nobody answers the request. The connection has to be ended by somebody else.
// That takes no mount away: programs get ENOTCONN, as from any dead mount.

// aborter makes ready to end the connection of the FUSE filesystem dev, which is
// mounted at path. An error says that this user can't.
func aborter(path, dev string) (abort func() error, err error) {
	file, err := openAbort(dev)
	if err == nil {
		return func() error { _, err := file.WriteString("1"); return err }, nil
	}
	if privileged() { // in a user namespace: fusectl can't be mounted there
		return func() error { return force(path, dev) }, nil
	}
	return nil, err
}

// connections is where fusectl is mounted, where it is.
const connections = "/sys/fs/fuse/connections"

// openAbort opens the file of fusectl that ends the connection when it is written to.
// Open, it stands for that very connection: the device number may become another's.
func openAbort(dev string) (*os.File, error) {
	name := dev[strings.Index(dev, ":")+1:] + "/abort"
	root, err := fusectl()
	if err != nil {
		return os.OpenFile(connections+"/"+name, os.O_WRONLY, 0) // belongs to who mounted
	}
	defer unix.Close(root) // an open file in it keeps it
	fd, err := unix.Openat(root, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "fusectl:" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// fusectl is the filesystem with the connections, mounted nowhere. It takes
// CAP_SYS_ADMIN, and Linux 5.2.
func fusectl() (int, error) {
	context, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	return root, os.NewSyscallError("fsmount", err)
}

// force ends the connection by the beginning of an unmount that then fails, since
// the mount is in use: by us (fuse_umount_begin; TestForceUncoversNothing).
func force(path, dev string) error {
	p, err := errand{path, dev}.find()
	if err != nil {
		return fmt.Errorf("the mount at %s: %w", path, err)
	}
	defer p.close() // not before the end
	err = unix.Unmount(fdPath(p.fd), unix.MNT_FORCE)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil
	case err == nil:
		return fmt.Errorf("something was being mounted over %s", path)
	}
	return os.NewSyscallError("umount2", err)
}

// hangs reports whether p is on a mount of ours whose process was killed and yet does
// not end.
func (p *place) hangs() bool {
	if p.mount.Type != FSType {
		return false
	}
	all, err := visible()
	if err != nil {
		return false
	}
	e := p.mount.listed(all)
	return e != nil && e.hasDied()
}

// hasDied reports whether the mount's process is dead, though its entry is
// locked.
func (e entry) hasDied() bool {
	p, err := openProcess(itoa(e.Pid))
	if err != nil {
		return false // of another pid namespace, perhaps
	}
	defer p.close()
	v, err := p.vitals()
	return err == nil && v.started == e.Started && v.hasDied()
}

// abort ends the connection of the mount that p is on. p keeps its device
// number from becoming another's.
func (p *place) abort() error {
	abort, err := aborter(p.mount.Mountpoint, p.mount.Dev)
	if err == nil {
		err = abort()
	}
	if err != nil {
		return failed(err, "as root: mount -t fusectl none "+connections+"; then again", "the connection of the dead mount at %s, whose daemon hangs, can't be aborted", p.mount.Mountpoint)
	}
	return nil
}

// endHanging ends the process that hangs in the mount that p is on, if one does.
func (p *place) endHanging() error {
	if !p.hangs() {
		return nil
	}
	if err := p.abort(); err != nil {
		return err
	}
	for end := time.Now().Add(endingTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !p.hangs() {
			return nil
		}
	}
	return failed(nil, "mount again when what it waits for answers, most likely the filesystem below: ps -L -o stat,wchan -C mendfs", "the daemon of the dead mount at %s was killed, but has not ended", p.mount.Mountpoint)
}
