package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

// daemonHelper is what mendfs mount --daemon does, with the arguments
// BACKING MOUNTPOINT STATE, or "die".
func daemonHelper(d *Daemon) int {
	if os.Args[1] == "die" {
		return 3
	}
	m, err := New(Options{Backing: os.Args[1], Mountpoint: os.Args[2], State: os.Args[3], Stderr: d})
	if err != nil {
		_ = d.Failed(err) // the test sees whether it came through
		return 1
	}
	if err := d.Ready(m); err != nil {
		return 1
	}
	fmt.Fprintln(d, "serving")
	if m.Wait() != nil {
		return 1
	}
	time.Sleep(100 * time.Millisecond) // a busy machine; the log is open until the process ends
	return 0
}

func TestDaemonIsReadyWhenItReturns(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	ready, err := Daemonize([]string{b.backing, b.point, b.state}, &b.stderr)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.read(b.point + "/f"); got != "text" || !strings.HasPrefix(ready, "mendfs: "+b.backing+" ready (at "+b.point) {
		t.Errorf("read %q, ready line %q", got, ready)
	}
	r, err := Find(b.point)
	if err != nil || r.Pid == os.Getpid() {
		t.Fatalf("found %+v, %v", r, err)
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", r.Pid)); err != nil || dir != "/" {
		t.Errorf("its working directory is %q, %v", dir, err)
	}
	if err := Unmount(b.point); err != nil {
		t.Fatal(err)
	}
	s, err := OpenState(b.state) // the daemon has let go of it
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if log := b.read(b.state + "/" + logFile); !strings.Contains(log, "serving") {
		t.Errorf("the log says %q", log)
	}
	if !strings.Contains(b.stderr.String(), "new state directory") {
		t.Errorf("the terminal saw %q", b.stderr.String())
	}
}

func TestDaemonReportsItsError(t *testing.T) {
	b := newBench(t)
	_, err := Daemonize([]string{b.backing, b.dir + "/none", b.state}, &b.stderr)
	var e *Error
	if !errors.As(err, &e) || e.Exit != control.ExitUsage || !strings.Contains(e.Msg, "does not exist") || e.Next == "" {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(b.state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory was made: %v", err)
	}
}

func TestDaemonThatDiesIsReported(t *testing.T) {
	_, err := Daemonize([]string{"die"}, os.Stderr)
	var e *Error
	if !errors.As(err, &e) || e.Exit != control.ExitOperational || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

// TestDaemonInheritsNothing holds a lock and a pipe as a shell does, without
// O_CLOEXEC.
func TestDaemonInheritsNothing(t *testing.T) {
	b := newBench(t)
	file := b.dir + "/inherited"
	b.write(file, "")
	fd, err := unix.Open(file, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := Daemonize([]string{b.backing, b.point, b.state}, &b.stderr); err != nil {
		t.Fatal(err)
	}
	r, err := Find(b.point)
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d/fd", r.Pid)
	list, err := os.ReadDir(dir)
	if err != nil || len(list) == 0 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, e := range list {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == file {
			t.Errorf("the daemon has descriptor %s, %s", e.Name(), to)
		}
	}
	if err := Unmount(b.point); err != nil {
		t.Error(err)
	}
}

// TestUmountLeavesTheStateFilesystemIdle unmounts the filesystem of the state
// directory as soon as the mount is gone.
func TestUmountLeavesTheStateFilesystemIdle(t *testing.T) {
	b := newBench(t)
	b.mkdir(b.dir + "/statefs")
	if err := unix.Mount("tmpfs", b.dir+"/statefs", "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	if _, err := Daemonize([]string{b.backing, b.point, b.dir + "/statefs/s"}, &b.stderr); err != nil {
		t.Error(err)
	} else if r, err := Find(b.point); err != nil {
		t.Error(err)
	} else {
		if err := Unmount(b.point); err != nil {
			t.Error(err)
		}
		if open, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.Pid)); len(open) > 0 { // none to read once it has ended
			t.Errorf("the daemon still has %d files open", len(open))
		}
	}
	if err := unix.Unmount(b.dir+"/statefs", 0); err != nil { // a failure is also reported by the bench
		t.Error(err)
	}
}

// TestDetachedMountIsExplained has a daemon end while a file is open.
func TestDetachedMountIsExplained(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	o := b.options()
	helper := startHelper(t, o)
	f, err := os.Open(b.point + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := helper.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p, err := lookup(b.point)
	for end := time.Now().Add(10 * time.Second); err == nil && p.mount.Type == FSType && time.Now().Before(end); p, err = lookup(b.point) {
		p.close()
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	explained := func(what string, err error) {
		t.Helper()
		var e *Error
		pid := fmt.Sprint(helper.Process.Pid)
		if !errors.As(err, &e) || e.Exit != control.ExitOperational || !strings.Contains(e.Msg, "(pid "+pid+")") || !strings.Contains(e.Msg, "detached") ||
			!strings.Contains(e.Next, "lsof") || !strings.Contains(e.Next, "kill -9 "+pid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.refused(o, control.ExitOperational, "already mounted")
	_, err = New(o)
	explained("mount", err)
	explained("umount", Unmount(b.point))

	// The mountpoint is free for another backing directory, and both are listed.
	b.mkdir(b.dir + "/other")
	m := b.mount(Options{Backing: b.dir + "/other", Mountpoint: b.point, State: b.dir + "/state2", Stderr: &b.stderr})
	all, err := List()
	if n := len(slices.DeleteFunc(all, func(r Running) bool { return r.Mountpoint != b.point })); err != nil || n != 2 {
		t.Errorf("%d listed, %v", n, err)
	}
	b.end(m)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := helper.Wait(); err != nil {
		t.Error(err)
	}
	if err := Unmount(b.point); err == nil || !strings.Contains(err.Error(), "nothing of mendfs is mounted") {
		t.Errorf("after its end: %v", err)
	}
}
