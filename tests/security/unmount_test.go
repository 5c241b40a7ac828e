package security

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// children are the processes that a mount has started and that live.
func children(t *testing.T, pid int) (pids []string) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // the thread has ended
			t.Fatal(err)
		}
		pids = append(pids, strings.Fields(string(text))...)
	}
	return pids
}

// gone waits until the processes have ended.
func gone(t *testing.T, pids []string) {
	t.Helper()
	for _, pid := range pids {
		eventually(t, "process "+pid+" has ended", func() bool {
			text, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(text), ") Z ")
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after 20 s: %s", what)
		}
	}
}

// TestEveryWayToUnmount works in spite of Landlock, and leaves no process.
func TestEveryWayToUnmount(t *testing.T) {
	harness.Need(t, harness.Root)
	for name, unmount := range map[string]func(t *testing.T, m *harness.Mount){
		"SIGTERM": func(_ *testing.T, m *harness.Mount) { m.Stop() },
		"mendfs umount": func(t *testing.T, m *harness.Mount) {
			if r := harness.Mendfs(t, "umount", m.At); r.Exit != 0 {
				t.Error(r.Stderr)
			}
			m.WaitExit()
		},
		"umount": func(t *testing.T, m *harness.Mount) {
			if r := harness.Run(t, "umount", m.At); r.Exit != 0 {
				t.Error(r.Stderr)
			}
			m.WaitExit()
		},
		"SIGTERM while it is in use": func(t *testing.T, m *harness.Mount) {
			user := exec.Command("sleep", "60")
			user.Dir = m.At
			if err := user.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = user.Process.Kill() // it may have ended
				_ = user.Wait()
				m.WaitExit()
			}()
			if err := unix.Kill(m.Pid(), unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			said := "is in use: detached"
			if m.At == m.Backing {
				said = "is in use: it is served until its last user is gone"
			}
			eventually(t, "it says so", func() bool { return strings.Contains(m.Stderr(), said) })
			eventually(t, "only what covers nothing is detached", func() bool {
				return (harness.MountedAs(t, m.At) == "fuse.mendfs") == (m.At == m.Backing)
			})
		},
	} {
		for _, over := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, over-mounted %v", name, over), func(t *testing.T) {
				m := harness.New(t, harness.Config{Over: over})
				helpers := children(t, m.Pid())
				if len(helpers) != 1 {
					t.Errorf("the serving process has the children %v", helpers)
				}
				m.Sh("echo text >f")
				unmount(t, m)
				gone(t, helpers)
				if text, err := os.ReadFile(m.Below("f")); err != nil || string(text) != "text\n" {
					t.Errorf("below is %q, %v", text, err)
				}
			})
		}
	}
}

// TestKilledServerUncoversNothing: what died stays dead until it is unmounted.
func TestKilledServerUncoversNothing(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.New(t, harness.Config{Over: true})
	m.Sh("echo text >f")
	helpers := children(t, m.Pid())
	m.Kill()
	gone(t, helpers)
	if _, err := os.Stat(m.Path("f")); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("through the dead mount: %v", err)
	}
	m.Start() // replaces it
	m.Sh("grep -q text f")
}

// TestSignalsForAllEndInOrder: a terminal and a service manager signal every
// process of a mount.
func TestSignalsForAllEndInOrder(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.New(t, harness.Config{})
	helpers := children(t, m.Pid())
	for _, pid := range helpers {
		for _, signal := range []string{"INT", "TERM", "HUP"} {
			if r := harness.Run(t, "kill", "-"+signal, pid); r.Exit != 0 {
				t.Error(r.Stderr)
			}
		}
	}
	m.Stop()
	gone(t, helpers)
}

// TestOnlyItsOwnMount: what has been mounted over a mount stays.
func TestOnlyItsOwnMount(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.New(t, harness.Config{})
	if err := unix.Mount("other", m.At, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(m.Pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says why it stays", func() bool { return strings.Contains(m.Stderr(), "is mounted over") })
	if kind := harness.MountedAs(t, m.At); kind != "tmpfs" {
		t.Errorf("%q is mounted now", kind)
	}
	if err := unix.Unmount(m.At, 0); err != nil {
		t.Fatal(err)
	}
	if r := harness.Mendfs(t, "umount", m.At); r.Exit != 0 {
		t.Error(r.Stderr)
	}
	m.WaitExit()
}
