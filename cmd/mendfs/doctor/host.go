package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// host is what kernel and user allow.
type host struct {
	release      string
	major, minor int
	fuse         error // opening /dev/fuse
	protocol     protocol
	admin        bool   // CAP_SYS_ADMIN
	fusermount   string // path of fusermount3; "" if there is none
	setuid       bool   // fusermount3 runs as root
	allowOther   bool   // /etc/fuse.conf lets ordinary users use --allow-other
	openTree     error  // cloning the mount of the backing, for over-mounts
	byHandle     error  // opening the backing by its file handle
	handles      error  // the filesystem has file handles
	landlock     int    // version that the kernel answers for
	noLandlock   error  // asking for it
	copySafety   pmem.CopySafety
}

func (h host) atLeast(major, minor int) bool {
	return h.major > major || h.major == major && h.minor >= minor
}

func (f *facts) askHost(dir int) {
	h := &f.host
	h.release, h.major, h.minor = kernel()
	h.fuse = tryFuse()
	h.admin = hasCapability(unix.CAP_SYS_ADMIN)
	h.protocol = askProtocol(h.fuse, h.admin)
	h.askFusermount()
	h.openTree = tryOpenTree(dir)
	h.handles, h.byHandle = tryHandle(dir)
	h.landlock, h.noLandlock = landlock.LandlockGetABIVersion()
	h.copySafety = pmem.AskCopySafety()
}

// askFusermount looks for the program by which ordinary users mount.
func (h *host) askFusermount() {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return
	}
	h.fusermount = path
	if info, err := os.Stat(path); err == nil {
		h.setuid = info.Mode()&os.ModeSetuid != 0
	}
	text, _ := os.ReadFile("/etc/fuse.conf") // fusermount3 takes a missing file for no
	for line := range strings.Lines(string(text)) {
		h.allowOther = h.allowOther || strings.TrimSpace(line) == "user_allow_other"
	}
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
