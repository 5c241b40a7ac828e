package mount

import (
	"bytes"
	"cmp"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Seen is a mount of mendfs, as the mount table and the lists of running mounts
// show it.
type Seen struct {
	Running      // Backing is the source in the mount table if the mount is not listed
	Listed  bool // State and Pid are known
	Dead    bool // its daemon is gone; of another user's mount only root can tell
}

// Survey is all mounts of mendfs in sight, dead or alive and whoever's they are,
// by mountpoint.
func Survey() ([]Seen, error) {
	listed, err := visible()
	if err != nil {
		return nil, err
	}
	table, err := mounts()
	if err != nil {
		return nil, failed(err, "see whether /proc is mounted", "the mount table can't be read")
	}
	var all []Seen
	for _, e := range listed {
		all = append(all, Seen{Running: e.Running, Listed: true})
	}
	told := map[string]bool{} // by device number
	for _, m := range table {
		if m.Type != FSType || told[m.Dev] {
			continue
		}
		e := m.listed(listed)
		if e != nil && e.Mountpoint == m.Mountpoint {
			continue
		}
		// A daemon that is just ending is still listed, when the device number of its
		// mount may be another's already.
		dead := m.isDead()
		if e != nil && !dead {
			continue
		}
		told[m.Dev] = true
		all = append(all, Seen{Running: Running{Mountpoint: m.Mountpoint, Backing: m.Source, Owner: m.owner()}, Dead: dead})
	}
	slices.SortStableFunc(all, func(a, b Seen) int { return compareMountpoints(a.Running, b.Running) })
	return all, nil
}

func compareMountpoints(a, b Running) int { return cmp.Compare(a.Mountpoint, b.Mountpoint) }

func itoa(n int) string { return strconv.Itoa(n) }

// option is the value of an option of the filesystem, as in user_id=0; "" if it has none.
func (m mountEntry) option(name string) string {
	for _, word := range m.Super {
		if value, found := strings.CutPrefix(word, name+"="); found {
			return value
		}
	}
	return ""
}

// owner is the uid of who mounted, as the kernel has it; 0 if it says nothing.
func (m mountEntry) owner() int {
	uid, err := strconv.Atoi(m.option("user_id"))
	if err != nil {
		return 0
	}
	return uid
}

// group is the gid of who mounted, as owner.
func (m mountEntry) group() int {
	gid, err := strconv.Atoi(m.option("group_id"))
	if err != nil {
		return 0
	}
	return gid
}

// isDead reports whether m is a FUSE mount whose daemon is gone. One that can't
// be reached, or doesn't answer, is not.
func (m mountEntry) isDead() bool {
	p, err := lookup(m.Mountpoint)
	if err != nil {
		return false
	}
	defer p.close()
	return p.mount.Dev == m.Dev && p.isDead()
}

// hasServer asks statfs whether somebody serves the mount that fd is on: that
// always asks the daemon, while stat may be answered from a cache. It is asked
// as the owner of a mount that lets nobody else in, root neither (the kernel
// then answers itself). A daemon that says nothing is there all the same.
func hasServer(fd int, m mountEntry) bool {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return true
	}
	answer := make(chan error, 1)
	go func() { // ends with the answer; a stopped daemon keeps it, and its thread, until the process ends
		defer unix.Close(own)
		if uid := m.owner(); os.Geteuid() == 0 && uid != 0 {
			runtime.LockOSThread() // for good: the thread is of no other use, and ends with this goroutine
			if err := become(uid, m.group()); err != nil {
				answer <- err
				return
			}
		}
		var st unix.Statfs_t
		answer <- unix.Fstatfs(own, &st)
	}()
	select {
	case err := <-answer:
		return !errors.Is(err, unix.ENOTCONN)
	case <-time.After(answerTime):
		return true
	}
}

// become makes this thread alone the user's: the kernel compares all ids with
// those of who mounted.
func become(uid, gid int) error {
	u, g := uintptr(uid), uintptr(gid)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, g, g, g); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, u, u, u); errno != 0 {
		return errno
	}
	return nil
}

// usersEntries is what the users have listed of the mounts that the mount table
// has as theirs: for root, who may ask them. What is wrong with a user's list
// is his affair.
func usersEntries() []entry {
	table, err := mounts()
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	owners := map[string]int{} // by device number
	for _, m := range table {
		if uid := m.owner(); m.Type == FSType && uid != 0 {
			owners[m.Dev] = uid
		}
	}
	var all []entry
	for _, uid := range slices.Compact(slices.Sorted(maps.Values(owners))) {
		for _, r := range registriesOf(uid) {
			list, err := r.entries()
			if err != nil {
				continue
			}
			all = append(all, slices.DeleteFunc(list, func(e entry) bool { return owners[e.Dev] != uid })...)
		}
	}
	return all
}

// registriesOf is the registries of a user in the usual places, and where his
// running mounts have been told to keep it.
func registriesOf(uid int) []*registry {
	dirs := []string{"/run/user/" + itoa(uid) + "/mendfs", "/tmp/mendfs-" + itoa(uid)}
	for _, dir := range runtimeDirs(uid) {
		dirs = append(dirs, filepath.Join(dir, "mendfs"))
	}
	slices.Sort(dirs)
	var list []*registry
	for _, dir := range slices.Compact(dirs) {
		if checkRegistry(dir, uid) == nil {
			list = append(list, &registry{dir, uid})
		}
	}
	return list
}

// runtimeDirs is XDG_RUNTIME_DIR of the user's processes called mendfs.
func runtimeDirs(uid int) []string {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var dirs []string
	for _, proc := range processes {
		name, err := os.ReadFile(filepath.Join(proc, "comm"))
		if err != nil || string(name) != fsName+"\n" || processUID(proc) != uid {
			continue // it has ended, or is none
		}
		text, err := os.ReadFile(filepath.Join(proc, "environ"))
		if err != nil {
			continue // the same
		}
		for _, word := range bytes.Split(text, []byte{0}) {
			dir, found := bytes.CutPrefix(word, []byte("XDG_RUNTIME_DIR="))
			if found && len(dir) > 0 {
				dirs = append(dirs, string(dir))
			}
		}
	}
	return dirs
}

// processUID is the real uid of a process; -1 if it has ended. The owner of the
// files in /proc is root for those of a process that gave rights away.
func processUID(proc string) int {
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return -1
	}
	_, rest, _ := strings.Cut(string(text), "\nUid:\t")
	first, _, _ := strings.Cut(rest, "\t")
	uid, err := strconv.Atoi(first)
	if err != nil {
		return -1
	}
	return uid
}
