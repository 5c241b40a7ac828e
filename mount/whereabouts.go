package mount

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// whereabouts says where the mount is, and how it can be made to go.
func (e entry) whereabouts() (at, next string) {
	at = fmt.Sprintf("%s (pid %d)", e.Mountpoint, e.Pid)
	if !e.detached() {
		return at, "mendfs umount " + e.Mountpoint
	}
	if pid := e.elsewhere(); pid != 0 {
		return fmt.Sprintf("%s, detached but still mounted for process %d, in another mount namespace", at, pid), e.endElsewhere(pid)
	}
	device := strings.Replace(e.Dev, ":", ",", 1)
	return at + ", detached but still used by open files", fmt.Sprintf("close them (lsof lists them with device %s), or kill -9 %d", device, e.Pid)
}

func (e entry) endElsewhere(pid int) string {
	return fmt.Sprintf("end process %d and what else is in its mount namespace (lsns -t mnt), or kill -9 %d", pid, e.Pid)
}

// unlocated is whereabouts for who only asks whether there is a conflict, and often.
func (e entry) unlocated() (at, next string) { return e.Mountpoint, "" }

// elsewhere is a process that has the mount in its mount table; 0 if there is none that can be
// seen. A namespace that was made while it was mounted, and hears of no unmounts
// (unshare -m, some containers), keeps it. Anybody may make one.
func (e entry) elsewhere() (pid int) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return 0 // it is only for a message
	}
	for _, process := range all {
		pid, err := strconv.Atoi(process.Name())
		if err != nil {
			continue // not a process
		}
		table, err := mountsOf(process.Name())
		if err != nil {
			continue // it has ended, or is somebody else's
		}
		if slices.ContainsFunc(table, func(m mountEntry) bool { return m.Dev == e.Dev && m.Type == FSType }) {
			return pid
		}
	}
	return 0
}
