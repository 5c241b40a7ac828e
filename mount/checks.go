package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

// target is the two ends of a mount, checked.
type target struct {
	backing    *place
	mountpoint *place // the same as backing when over-mounting
	uncovered  bool   // a dead mount was detached from the mountpoint
}

func (t *target) overMounted() bool { return t.mountpoint == t.backing }

func (t *target) close() {
	if !t.overMounted() {
		t.mountpoint.close()
	}
	t.backing.close()
}

// findTarget looks up both ends and refuses those that can't be mounted. The
// mountpoint may be covered by a dead mount of ours.
func findTarget(c *config) (*target, error) {
	path, what := c.Mountpoint, "mountpoint"
	if path == "" {
		path, what = c.Backing, "backing directory"
	}
	mountpoint, err := look(path, what)
	if err != nil {
		return nil, err
	}
	t := &target{backing: mountpoint, mountpoint: mountpoint}
	if c.Mountpoint != "" {
		if t.backing, err = look(c.Backing, "backing directory"); err != nil {
			mountpoint.close()
			return nil, err
		}
		if t.backing.path == mountpoint.path {
			t.backing.close()
			t.backing = mountpoint
		}
	}
	if err := t.check(); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func notThere(err error, what, path string) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &Error{Exit: control.ExitUsage, Msg: "the " + what + " " + path + " does not exist", Next: "create it, or check the spelling"}
	case errors.Is(err, unix.ENOTDIR):
		return &Error{Exit: control.ExitUsage, Msg: "the " + what + " " + path + " is not a directory", Next: "give a directory"}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return failed(err, "mount as a user who may enter it", "the %s %s can't be opened", what, path)
	case errors.Is(err, unix.ENOTCONN):
		return failed(err, "find the dead mount with findmnt and umount it", "the %s %s lies in a mount whose daemon is gone", what, path)
	}
	return failed(err, "see what the filesystem says in dmesg", "the %s %s can't be opened", what, path)
}

// check refuses ends that don't fit together.
func (t *target) check() error {
	b, m := t.backing, t.mountpoint
	if b.mount.Type == FSType {
		if t.overMounted() && b.isMountRoot() {
			return failed(nil, "mendfs umount "+b.path, "already mounted: %s is a running mendfs mount", b.path)
		}
		return failed(nil, "give a directory of the filesystem below", "the backing directory %s lies in the mendfs mount at %s", b.path, b.mount.Mountpoint)
	}
	if pseudo[b.mount.Type] {
		return usage("give a directory of a filesystem that stores files", "the backing directory %s is on %s, where the kernel makes up the files", b.path, b.mount.Type)
	}
	if t.overMounted() {
		return nil
	}
	if b.covered {
		return failed(nil, "mendfs umount "+b.path, "a dead mount covers the backing directory %s", b.path)
	}
	switch {
	case m.mount.Type == FSType && m.isMountRoot():
		return failed(nil, "mendfs umount "+m.path, "already mounted: %s is a running mendfs mount", m.path)
	case m.isMountRoot():
		return failed(nil, "umount it, or give an empty directory", "the mountpoint %s is in use: %s (%s) is mounted there", m.path, m.mount.Source, m.mount.Type)
	case b.holds(m):
		return usage("give a directory elsewhere, or leave it out to over-mount "+b.path, "the mountpoint %s lies inside the backing directory %s", m.path, b.path)
	case m.holds(b):
		return usage("give an empty directory elsewhere", "the backing directory %s lies inside the mountpoint %s", b.path, m.path)
	}
	return nil
}

// pseudo is the filesystems without files of anybody's: reading there is asking
// the kernel, writing is telling it.
var pseudo = map[string]bool{
	"binder": true, "binfmt_misc": true, "bpf": true, "cgroup": true, "cgroup2": true, "configfs": true,
	"cpuset": true, "debugfs": true, "devpts": true, "efivarfs": true, "functionfs": true, "fusectl": true, "mqueue": true,
	"nfsd": true, "nsfs": true, "proc": true, "pstore": true, "resctrl": true, "rpc_pipefs": true, "securityfs": true,
	"selinuxfs": true, "smackfs": true, "sysfs": true, "tracefs": true,
}

// MadeUp reports whether a filesystem of this type stores no files, so that it
// can't be a backing.
func MadeUp(fstype string) bool { return pseudo[fstype] }

// locate is where the file or directory of ours, path, is or would be: its path
// without symbolic links above it, and its spot. One that the mount would
// contain or cover is refused: mendfs must never wait for itself.
func (t *target) locate(what, path, next string) (string, spot, error) {
	p, rest, err := nearest(path)
	if err != nil {
		return "", spot{}, notThere(err, what, path)
	}
	defer p.close()
	at := p.spot()
	at.Inner = filepath.Join(at.Inner, rest)
	real := filepath.Join(p.path, rest)
	switch {
	case below(t.backing.path, real), t.backing.spot().holds(at):
		err = usage(next, "the %s %s lies inside the backing directory %s", what, path, t.backing.path)
	case below(t.mountpoint.path, real), t.mountpoint.spot().holds(at):
		err = usage(next, "the %s %s lies inside the mountpoint %s", what, path, t.mountpoint.path)
	case p.mount.Type == FSType:
		err = usage(next, "the %s %s lies in the mendfs mount at %s", what, path, p.mount.Mountpoint)
	}
	return real, at, err
}

// nearest is path, or the nearest directory above it that exists and can be
// asked (in a dead mount, its root), and what of path lies below that. A symbolic link at path itself is not followed.
func nearest(path string) (p *place, rest string, err error) {
	p, err = lookupAs(path, unix.O_NOFOLLOW)
	for errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) {
		path, rest = filepath.Dir(path), filepath.Join(filepath.Base(path), rest)
		p, err = lookup(path)
	}
	return p, rest, err
}

// privileged reports whether this process may call mount(2) itself. All others
// mount through fusermount3.
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// checkFUSE says before anything is made whether this machine and user can
// mount at all.
func checkFUSE(device string, allowOther bool) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		_ = unix.Close(fd) // nothing was written
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return failed(nil, "modprobe fuse; in a container: run it with --device /dev/fuse --cap-add SYS_ADMIN", "this machine has no %s", device)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return failed(err, "chmod 666 "+device+", or allow the device to the container", "no permission for %s", device)
	default:
		return failed(err, "see dmesg", "%s can't be opened", device)
	}
	if privileged() {
		return nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return failed(nil, "install the package fuse3, or mount as root", "fusermount3 is not installed, and only root can mount without it")
	}
	if allowOther && !userAllowOther("/etc/fuse.conf") {
		return usage("add the line user_allow_other to /etc/fuse.conf, or mount as root", "this machine lets only root use --allow-other")
	}
	return nil
}

// userAllowOther reports whether ordinary users may mount for others.
func userAllowOther(conf string) bool {
	text, err := os.ReadFile(conf)
	if err != nil {
		return false // fusermount3 takes a missing file for no
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
