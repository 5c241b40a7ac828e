package fs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// callerThreads is how many objects can be made at the same time.
const callerThreads = 8

// identity is what the backing filesystem looks at when an object is made.
type identity struct {
	uid, gid uint32
	groups   []int
	umask    uint32
}

// callers runs calls as the caller of a request.
//
// Identity and umask belong to threads in Linux, and a Go program has no
// thread of its own, so there are some that do nothing else: each is locked
// to its goroutine, has left the process's umask (unshare(CLONE_FS)), and
// takes on file-system uid and gid. The daemon without privileges can't, and
// need not: only the umask is set.
//
// The kernel has checked permissions already, with supplementary groups that
// we are not told, so the right to pass by permission bits is raised again
// after the change of uid has taken it away. What would make a difference to a
// new object stays away: CAP_FSETID (setgid bits) and CAP_SYS_RESOURCE
// (quotas, reserved blocks).
type callers struct {
	privileged bool
	own        identity // of all other threads
	jobs       chan job // closed by close, which stops the threads
	threads    sync.WaitGroup
}

type job struct {
	who  identity
	call func() error
	done chan<- error
}

// errThread says that a thread could not take on the caller's identity.
var errThread = fmt.Errorf("taking on the caller's identity: %w", unix.EPERM)

func newCallers() (*callers, error) {
	caps, err := getCaps()
	if err != nil {
		return nil, err
	}
	needed := bits(unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETGID, unix.CAP_SETUID)
	own, err := ownIdentity()
	if err != nil {
		return nil, err
	}
	c := &callers{
		own:        own,
		privileged: unix.Geteuid() == 0 && caps.effective&needed == needed,
		jobs:       make(chan job),
	}
	ready := make(chan error)
	for range callerThreads {
		c.threads.Go(func() { c.thread(caps, ready) })
	}
	for range callerThreads {
		err = errors.Join(err, <-ready)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *callers) close() {
	close(c.jobs)
	c.threads.Wait()
}

// making runs call as who, for a new object in the directory open at dir. mode is what the
// object is to have before the umask, and call is told what to ask for.
func (c *callers) making(who identity, dir int, mode uint32, call func(mode uint32) error) error {
	if asked, ok := c.ownWay(who, dir, mode); ok {
		return again(func() error { return call(asked) })
	}
	return c.as(who, func() error { return call(mode) })
}

// ownWay reports whether this thread can make the object just as the caller would, which saves
// the change to another one, the most costly part of it all: who has the daemon's ids, and
// the daemon's umask takes nothing from what the caller's leaves. Where the directory has a
// default ACL umasks do not count.
func (c *callers) ownWay(who identity, dir int, mode uint32) (asked uint32, ok bool) {
	if c.privileged && (who.uid != c.own.uid || who.gid != c.own.gid) {
		return 0, false
	}
	asked = mode &^ who.umask
	if asked&c.own.umask != 0 || asked != mode && hasDefaultACL(dir) {
		return 0, false
	}
	return asked, true
}

func hasDefaultACL(dir int) bool {
	_, err := unix.Getxattr(procPath(dir), "system.posix_acl_default", nil)
	return !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP)
}

// as runs call with the identity who.
func (c *callers) as(who identity, call func() error) error {
	done := make(chan error, 1)
	c.jobs <- job{who, call, done}
	return <-done
}

// ownIdentity is that of the process, which nobody changes.
func ownIdentity() (identity, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return identity{}, err
	}
	who := identity{uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid()), umask: 0777}
	for line := range strings.Lines(string(status)) {
		if word, ok := strings.CutPrefix(line, "Umask:"); ok { // Linux 4.7
			umask, err := strconv.ParseUint(strings.TrimSpace(word), 8, 12)
			if err != nil {
				return identity{}, err
			}
			who.umask = uint32(umask)
		}
	}
	return who, nil
}

// thread never unlocks: its thread ends with it and runs nothing else.
func (c *callers) thread(all capabilities, ready chan<- error) {
	runtime.LockOSThread()
	t := thread{all: all, now: identity{umask: ^uint32(0)}}
	err := unix.Unshare(unix.CLONE_FS)
	if err == nil && c.privileged {
		err = unix.Setgroups(nil) // of this thread only, as all of x/sys/unix
	}
	ready <- err
	for j := range c.jobs {
		if err := t.become(j.who, c.privileged); err != nil {
			j.done <- err
			continue
		}
		j.done <- again(j.call)
	}
}

type thread struct {
	all capabilities
	now identity
}

func (t *thread) become(who identity, privileged bool) error {
	if t.now.umask != who.umask {
		unix.Umask(int(who.umask))
		t.now.umask = who.umask
	}
	if !privileged || t.now.uid == who.uid && t.now.gid == who.gid && slices.Equal(t.now.groups, who.groups) {
		return nil
	}
	// If this fails half-way the thread is nobody: the next job starts anew.
	t.now.uid, t.now.gid, t.now.groups = ^uint32(0), ^uint32(0), nil
	if err := unix.Setgroups(who.groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	// Neither call reports failure: ask again, with an impossible id.
	if setfs(unix.SetfsgidRetGid, who.gid) != who.gid || setfs(unix.SetfsuidRetUid, who.uid) != who.uid {
		return errThread
	}
	caps := t.all
	if who.uid != 0 {
		caps.effective &= bits(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_MKNOD, unix.CAP_SETGID, unix.CAP_SETUID)
	}
	if err := caps.set(); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	t.now.uid, t.now.gid, t.now.groups = who.uid, who.gid, who.groups
	return nil
}

func setfs(call func(int) (int, error), id uint32) uint32 {
	_, _ = call(int(id)) // returns the id before, and no error
	now, _ := call(-1)
	return uint32(now)
}

// maker is the identity in which the caller of a request makes an object with
// the given mode. Supplementary groups decide over a setgid bit only.
func maker(c *fuse.Caller, umask, mode uint32) identity {
	who := identity{uid: c.Uid, gid: c.Gid, umask: umask}
	if mode&unix.S_ISGID != 0 && mode&unix.S_IFMT != unix.S_IFDIR && c.Uid != 0 {
		who.groups = groupsOf(c.Pid)
	}
	return who
}

// inGroup reports whether the caller may keep a setgid bit for group gid.
func inGroup(c *fuse.Caller, gid uint32) bool {
	return c.Uid == 0 || c.Gid == gid || slices.Contains(groupsOf(c.Pid), int(gid))
}

// groupsOf are the supplementary groups of a thread that waits for our reply;
// none if it can't be seen from here (another pid namespace).
func groupsOf(tid uint32) []int {
	status, err := os.Open("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return nil
	}
	defer status.Close()
	var groups []int
	for lines := bufio.NewScanner(status); lines.Scan(); {
		list, ok := strings.CutPrefix(lines.Text(), "Groups:")
		if !ok {
			continue
		}
		for _, word := range strings.Fields(list) {
			if gid, err := strconv.Atoi(word); err == nil {
				groups = append(groups, gid)
			}
		}
		break
	}
	return groups
}

// capabilities are those of one thread.
type capabilities struct{ effective, permitted, inheritable uint64 }

func bits(caps ...int) (set uint64) {
	for _, c := range caps {
		set |= 1 << c
	}
	return set
}

func getCaps() (capabilities, error) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return capabilities{}, fmt.Errorf("capget: %w", err)
	}
	return capabilities{
		effective:   uint64(d[0].Effective) | uint64(d[1].Effective)<<32,
		permitted:   uint64(d[0].Permitted) | uint64(d[1].Permitted)<<32,
		inheritable: uint64(d[0].Inheritable) | uint64(d[1].Inheritable)<<32,
	}, nil
}

func (c capabilities) set() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	d := [2]unix.CapUserData{
		{Effective: uint32(c.effective), Permitted: uint32(c.permitted), Inheritable: uint32(c.inheritable)},
		{Effective: uint32(c.effective >> 32), Permitted: uint32(c.permitted >> 32), Inheritable: uint32(c.inheritable >> 32)},
	}
	return unix.Capset(&h, &d[0])
}
