package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/mendfs/mendfs/mount/control"
)

// A confined process can do what serving needs and no more, for good: with
// Options.Confine, New gives capabilities away before anything else, and all
// other rights when the mount is made and before its first request. Both are
// properties of threads in Linux, and have to be changed in all of them at
// once (package psx; TestSandboxOnEveryThread).

// keptCapabilities are what a mount by root keeps; docs/security.md says what
// for.
var keptCapabilities = map[int]string{
	unix.CAP_CHOWN:           "chown",
	unix.CAP_DAC_OVERRIDE:    "dac_override",
	unix.CAP_DAC_READ_SEARCH: "dac_read_search",
	unix.CAP_FOWNER:          "fowner",
	unix.CAP_FSETID:          "fsetid",
	unix.CAP_SETGID:          "setgid",
	unix.CAP_SETUID:          "setuid",
	unix.CAP_LINUX_IMMUTABLE: "linux_immutable",
	unix.CAP_SYS_ADMIN:       "sys_admin",
	unix.CAP_MKNOD:           "mknod",
	unix.CAP_SETFCAP:         "setfcap",
}

// keepCapabilities gives all capabilities away that keep does not name,
// also those that a program started from here could get.
func keepCapabilities(keep map[int]string) error {
	var header = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SETPCAP) != 0 { // else the bounding set is not ours to change
		if err := boundCapabilities(keep); err != nil {
			return err
		}
	}
	var kept [2]uint32
	for c := range keep {
		kept[c/32] |= 1 << (c % 32)
	}
	for i := range data {
		data[i].Permitted &= kept[i]
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0 // ambient ones go with it
	}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

func boundCapabilities(keep map[int]string) error {
	for c := 0; ; c++ {
		bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			return nil // this kernel knows no more
		}
		if _, kept := keep[c]; kept || bound == 0 {
			continue
		}
		if err := everyThread(unix.PR_CAPBSET_DROP, uintptr(c)); err != nil {
			return fmt.Errorf("dropping capability %d from the bounding set: %w", c, err)
		}
	}
}

// everyThread is prctl(2) in all threads of this process.
func everyThread(option int, arg uintptr) error {
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, uintptr(option), arg, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// landlockABI is the version of Landlock that can be used, or 0 and why none
// can. Version 1 (before Linux 5.19) would forbid every rename and link to
// another directory.
func landlockABI() (abi int, why string) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return 0, "this kernel has no Landlock"
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, "Landlock is not enabled in this kernel (lsm= on its command line)"
	case err != nil:
		return 0, "Landlock can't be used: " + err.Error()
	case abi > 10:
		return 10, "" // what this program knows
	case abi < 2:
		return 0, "this kernel's Landlock forbids renames between directories (Linux 5.19 has a better one)"
	}
	return abi, ""
}

// What a directory of our own files is used for: those in it are made, read,
// written, renamed and removed.
const ownFiles = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSReadDir | ll.AccessFSWriteFile |
	ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSRemoveFile)

const readable = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSReadDir)

// restrict confines this process to the files of a mount, and lets it reach
// no network and signal no other process. It keeps what it has open.
func restrict(rules ...landlock.Rule) error {
	_, _ = time.Now().Zone() // reads the time zone's file, which is out of reach afterwards
	if err := everyThread(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if abi, _ := landlockABI(); abi == 0 {
		return nil
	}
	return landlock.V10.BestEffort().Restrict(rules...)
}

// rules are the places that serving needs. Rights are those of the directory
// found there now, whatever is mounted over it later; for the backing it is
// the one below the mount.
func (m *Mount) rules(t *target) []landlock.Rule {
	return []landlock.Rule{
		landlock.RWDirs(fdPath(m.root)).WithRefer(), // with execution: programs run through passthrough
		landlock.PathAccess(ownFiles, m.state.path, m.entry.registry.dir),
		landlock.PathAccess(readable, "/proc", "/sys"),
		landlock.PathAccess(ll.AccessFSReadFile|ll.AccessFSWriteFile, os.DevNull),
		// Whether the device works at all is asked of it when files can't be
		// read (package media).
		landlock.PathAccess(ll.AccessFSReadFile, devices(t)...).IgnoreIfMissing(),
	}
}

// devices are the block devices that the backing directory may lie on.
func devices(t *target) []string {
	var paths []string
	named, _ := os.Readlink("/sys/dev/block/" + t.backing.mount.Dev) // btrfs has a number of its own there: then the source
	for _, path := range []string{"/dev/" + filepath.Base(named), t.backing.mount.Source} {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			paths = append(paths, path)
		}
	}
	return paths
}

// privileges gives away the capabilities that are of no use, and starts the
// process that keeps the right to unmount.
func (m *Mount) privileges(*target) error {
	if !m.config.Confine {
		return nil
	}
	var err error
	if m.unmounter, err = startUnmounter(); err != nil {
		return failed(err, "see the limits of this process with ulimit -a", "the process that is to unmount can't be started")
	}
	m.onClose(m.unmounter.close)
	if err := keepCapabilities(keptCapabilities); err != nil {
		return failed(err, "see dmesg", "capabilities can't be given away")
	}
	return nil
}

// confine gives away all rights but those to serve.
func (m *Mount) confine(t *target) error {
	if !m.config.Confine {
		return nil
	}
	if err := restrict(m.rules(t)...); err != nil {
		return failed(err, "see dmesg", "the serving process can't be confined")
	}
	return nil
}

// sandbox is how this process is confined, as the kernel has it.
func (m *Mount) sandbox() control.Sandbox {
	s := control.Sandbox{Capabilities: []string{}}
	if !m.config.Confine {
		s.Why = "it was not asked for"
	} else {
		s.Landlock, s.Why = landlockABI()
	}
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	s.NoNewPrivs = err == nil && nnp == 1
	effective, err := effectiveCapabilities()
	if err != nil {
		s.Why = "capget: " + err.Error()
	}
	for c := range 64 {
		if effective&(1<<c) == 0 {
			continue
		}
		name, known := keptCapabilities[c]
		if !known {
			name = fmt.Sprintf("cap_%d", c)
		}
		s.Capabilities = append(s.Capabilities, name)
	}
	return s
}

// effectiveCapabilities are those of this thread.
func effectiveCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, err
}
