package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
)

// Called by one of these names, the program is the helper that mount(8) runs
// for the types mendfs and fuse.mendfs: it takes
//
//	SPEC DIR [-sfnv] [-N namespace] [-t type] [-o options]
//
// and is `mendfs mount --daemon` by other means.
var helperNames = []string{"mount.mendfs", "mount.fuse.mendfs"}

func isHelper(program string) bool { return slices.Contains(helperNames, filepath.Base(program)) }

// Exit codes of mount(8).
const (
	mountUsage     = 1  // wrong invocation, or no permission
	mountSystem    = 2  // no memory, no process
	mountInternal  = 4  // a bug
	mountCancelled = 8  // interrupted
	mountFailed    = 32 // it can't be mounted
)

// helperCall is one command line of the helper.
type helperCall struct {
	spec, dir string
	sloppy    bool // options that nobody knows are left out
	fake      bool // nothing is mounted
	verbose   bool
	namespace string // to mount in; "" for this one

	remount bool
	flags   map[string]string // of `mendfs mount`, by name; "true" where the flag is all
	words   []string          // for its -o
}

// runHelper obeys one command line and returns its exit code.
func runHelper(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := help(ctx, args, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", helperNames[0], oneLine(err))
	}
	return helperCode(err)
}

func help(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	call, err := parseHelper(args)
	if err != nil {
		return err
	}
	if call.namespace != "" {
		return enterNamespace(call.namespace, append(slices.Clone(args), "-N", ""))
	}
	if call.remount {
		return call.runRemount(ctx)
	}
	if err := completeEnvironment(); err != nil {
		return err
	}
	if !call.verbose {
		stdout = io.Discard // mount(8) is quiet about what worked
	}
	root := newRoot()
	root.SetArgs(call.mountArgs())
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

// helperCode is exitCode for mount(8).
func helperCode(err error) int {
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	var (
		refused *mount.Error
		own     *failure
	)
	code := exitCode(err)
	switch {
	case err == nil:
		return exitClean
	case code == exitCancelled:
		return mountCancelled
	case code == exitUsage, is(unix.EPERM, unix.EACCES):
		return mountUsage
	case is(unix.ENOMEM, unix.EAGAIN, unix.EMFILE, unix.ENFILE):
		return mountSystem
	case errors.As(err, &refused), errors.As(err, &own):
		return mountFailed
	}
	return mountInternal
}

func parseHelper(args []string) (*helperCall, error) {
	const usage = "usage: mount.mendfs SPEC DIR [-sfnv] [-N namespace] [-t type] [-o options]"
	call := &helperCall{flags: map[string]string{}}
	var lists []string
	var fsType string
	f := pflag.NewFlagSet(helperNames[0], pflag.ContinueOnError)
	f.Usage = func() {} // what is wrong is said in one line
	f.BoolVarP(&call.sloppy, "sloppy", "s", false, "")
	f.BoolVarP(&call.fake, "fake", "f", false, "")
	f.BoolVarP(&call.verbose, "verbose", "v", false, "")
	f.BoolP("no-mtab", "n", false, "") // there is no mtab any more
	f.StringVarP(&call.namespace, "namespace", "N", "", "")
	f.StringVarP(&fsType, "types", "t", "mendfs", "")
	f.StringArrayVarP(&lists, "options", "o", nil, "")
	err := f.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return nil, &usageError{"this is the helper of mount(8)", usage}
	case err != nil:
		return nil, &usageError{err.Error(), usage}
	case f.NArg() != 2:
		return nil, &usageError{fmt.Sprintf("%s given, want SPEC and DIR", count(f.NArg(), "argument")), usage}
	case fsType != "mendfs" && fsType != mount.FSType:
		return nil, &usageError{fmt.Sprintf("the type %q is not of mendfs", fsType), "mount -t mendfs SPEC DIR"}
	}
	call.spec, call.dir = f.Arg(0), f.Arg(1)
	// A value with a comma in it is two words here: mount(8) has no way to say that it is not.
	words := strings.Split(strings.Join(lists, ","), ",")
	call.remount = slices.Contains(words, "remount")
	for _, word := range words {
		if err := call.add(strings.TrimSpace(word)); err != nil {
			return nil, err
		}
	}
	return call, nil
}

// add sorts one word of -o: into those that `mendfs mount -o` takes, its flags
// (with - or _), those of the kernel, and unknown ones.
func (call *helperCall) add(word string) error {
	name, value, hasValue := strings.Cut(word, "=")
	asWord := strings.Replace(word, name, strings.ReplaceAll(name, "-", "_"), 1)
	asFlag := strings.ReplaceAll(name, "_", "-")
	switch {
	case word == "remount", call.remount && ofMountinfo[name]:
	case mount.IsMountOpt(word):
		call.words = append(call.words, word)
	case mount.IsMountOpt(asWord): // allow-other
		call.words = append(call.words, asWord)
	case asFlag == "read-only" && !hasValue:
		call.words = append(call.words, "ro")
	case isMountFlag(asFlag):
		if !hasValue && newMount().Flags().Lookup(asFlag).NoOptDefVal != "" {
			value = "true"
		}
		call.flags[asFlag] = value
	case call.sloppy:
	default:
		return &usageError{fmt.Sprintf("unknown mount option %q", word), "see the flags in 'mendfs mount --help', which are options here, or leave it out"}
	}
	return nil
}

// ofMountinfo are the options of a running mount that mount(8) adds to those
// of a remount. None of them can change.
var ofMountinfo = map[string]bool{"user_id": true, "group_id": true, "max_read": true, "blksize": true}

// isMountFlag reports whether a flag of `mendfs mount` can be an option.
func isMountFlag(name string) bool {
	switch name {
	case "daemon", "options", "fake", "help":
		return false
	}
	return newMount().Flags().Lookup(name) != nil
}

// mountArgs is the call as a command line of mendfs.
func (call *helperCall) mountArgs() []string {
	args := []string{"mount", "--daemon"}
	if call.fake {
		args = append(args, "--fake")
	}
	for _, name := range slices.Sorted(maps.Keys(call.flags)) {
		args = append(args, "--"+name+"="+call.flags[name])
	}
	return append(args, "--options="+strings.Join(call.words, ","), "--", call.spec, call.dir)
}

// runRemount changes a running mount, where that is the kernel's affair.
func (call *helperCall) runRemount(ctx context.Context) error {
	running, err := mount.Find(call.dir)
	if err != nil {
		return err
	}
	status, err := statusOf(ctx, *running)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(call.flags)) {
		if now := inForce(status, name); name != "force" && !sameValue(name, now, call.flags[name]) {
			return &failure{
				fmt.Errorf("%s=%s can't be had by a remount: the mount at %s has %s", name, quote(call.flags[name]), quote(running.Mountpoint), quote(now)),
				"umount it, and mount it again",
			}
		}
	}
	return mount.Remount(call.dir, status, call.words, call.fake)
}

// inForce is the value that a flag has in a running mount.
func inForce(s control.Status, flag string) string {
	switch flag {
	case "state":
		return s.State
	case "semantics":
		return s.Semantics
	case "simulate":
		return s.Simulate
	case "repair":
		return s.Repair
	case "event-log":
		return s.EventLog
	case "protect":
		if s.Protection != nil {
			return s.Protection.Mode
		}
	case "breaker":
		engine, _ := s.Engine.(map[string]any)
		pages, _ := engine["breaker_pages"].(float64)
		return strconv.FormatFloat(pages, 'f', -1, 64)
	case "verify-writes":
		engine, _ := s.Engine.(map[string]any)
		on, _ := engine["verify_writes"].(bool)
		return strconv.FormatBool(on)
	}
	return ""
}

// sameValue compares two values of a flag, paths by what they lead to.
func sameValue(flag, a, b string) bool {
	if a == b || flag != "state" && flag != "event-log" {
		return a == b
	}
	first, err := os.Stat(a)
	second, other := os.Stat(b)
	return err == nil && other == nil && os.SameFile(first, second)
}

// completeEnvironment sets what `mendfs mount` goes by: mount(8) hands over
// neither PATH nor HOME (util-linux 2.38; TestHelperForUsers), systemd may not.
func completeEnvironment() error {
	set := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if me, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil { // else --state has to be given
		set["HOME"] = me.HomeDir
	}
	for name, value := range set {
		if os.Getenv(name) != "" {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// enterNamespace starts this program again in the mount namespace, a file such
// as /proc/PID/ns/mnt or a PID. It returns only if that fails.
func enterNamespace(namespace string, args []string) error {
	if _, err := strconv.Atoi(namespace); err == nil {
		namespace = "/proc/" + namespace + "/ns/mnt"
	}
	fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &failure{fmt.Errorf("the mount namespace %s: %w", quote(namespace), err), "check the spelling"}
	}
	runtime.LockOSThread() // for good: the thread becomes the new program
	if err = unix.Unshare(unix.CLONE_FS); err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNS)
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", append([]string{os.Args[0]}, args...), os.Environ())
	}
	return &failure{fmt.Errorf("going on in the mount namespace %s: %w", quote(namespace), err), "see whether /proc is mounted there, and do it as root"}
}
