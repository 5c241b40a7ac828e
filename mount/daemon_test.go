package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

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
