package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// host is what kernel and user allow.
type host struct {
	release      string
	major, minor int
	fuse         error  // opening /dev/fuse
	admin        bool   // CAP_SYS_ADMIN
	fusermount   string // path of fusermount3; "" if there is none
	openTree     error  // cloning the mount of the backing, for over-mounts
	byHandle     error  // opening the backing by its file handle
	handles      error  // the filesystem has file handles
}

func (h host) atLeast(major, minor int) bool {
	return h.major > major || h.major == major && h.minor >= minor
}

func (f *facts) askHost(dir int) {
	h := &f.host
	h.release, h.major, h.minor = kernel()
	h.fuse = tryFuse()
	h.admin = hasCapability(unix.CAP_SYS_ADMIN)
	if path, err := exec.LookPath("fusermount3"); err == nil {
		h.fusermount = path
	}
	h.openTree = tryOpenTree(dir)
	h.handles, h.byHandle = tryHandle(dir)
}

func kernel() (release string, major, minor int) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", 0, 0
	}
	release = unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return release, 0, 0 // judged as an old kernel
	}
	return release, major, minor
}

// tryFuse opens /dev/fuse; an open that is followed by nothing has no effect.
func tryFuse() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func hasCapability(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(os.Getpid())}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// tryOpenTree clones the mount without attaching it anywhere; the clone is gone
// with the descriptor.
func tryOpenTree(dir int) error {
	fd, err := unix.OpenTree(dir, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// tryHandle asks for the file handle of the directory and opens it by that.
func tryHandle(dir int) (handles, byHandle error) {
	handle, _, err := unix.NameToHandleAt(dir, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return err, err
	}
	// open_by_handle_at takes no O_PATH descriptor, and listing is not what
	// this one is for: O_NOATIME is not needed.
	mount, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mount)
	fd, err := unix.OpenByHandleAt(mount, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return nil, errors.Join(unix.Close(fd))
}
