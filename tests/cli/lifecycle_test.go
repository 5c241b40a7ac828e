package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

func TestReadyLine(t *testing.T) {
	m := harness.Simulated(t, "dax")
	for _, word := range []string{"mendfs: ", m.At, m.State, "recover"} {
		if !strings.Contains(m.Ready(), word) {
			t.Errorf("the ready line is %q, and does not say %q", m.Ready(), word)
		}
	}
	if kind := harness.MountedAs(t, m.At); kind != "fuse.mendfs" {
		t.Errorf("mounted is %q", kind)
	}
}

// However a mount is ended, it exits with 0 and leaves nothing.
func TestWaysToEnd(t *testing.T) {
	signal := func(s syscall.Signal) func(t *testing.T, m *harness.Mount) {
		return func(t *testing.T, m *harness.Mount) {
			if err := syscall.Kill(m.Pid(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, end := range map[string]func(t *testing.T, m *harness.Mount){
		"SIGINT":  signal(syscall.SIGINT),
		"SIGTERM": signal(syscall.SIGTERM),
		"umount": func(t *testing.T, m *harness.Mount) {
			if err := unix.Unmount(m.At, 0); err != nil {
				t.Fatal(err)
			}
		},
		"mendfs umount": func(t *testing.T, m *harness.Mount) {
			if r := harness.Mendfs(t, "umount", m.At); r.Exit != exitOK {
				t.Fatalf("exit %d: %s", r.Exit, r.Stderr)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := harness.Simulated(t, "dax")
			data := m.File("f", 1, 5*page)
			end(t, m)
			m.WaitExit()
			got, err := os.ReadFile(m.Below("f"))
			if err != nil {
				t.Fatal(err)
			}
			harness.Compare(t, "the backing file", got, data)
			m.Start()
			m.Check("f", data)
		})
	}
}

func TestDaemon(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	_, b, m, s := place(t)
	r := harness.Mendfs(t, "mount", "--daemon", "--state", s, b, m)
	if r.Exit != exitOK || !strings.Contains(r.Stdout, m) || strings.Count(r.Stdout, "\n") != 1 {
		t.Fatalf("mount --daemon: exit %d, %q, %q", r.Exit, r.Stdout, r.Stderr)
	}
	t.Cleanup(func() {
		if harness.MountedAs(t, m) == "fuse.mendfs" {
			t.Errorf("%s has to be detached", m)
			_ = unix.Unmount(m, unix.MNT_DETACH) // said already
		}
	})
	if kind := harness.MountedAs(t, m); kind != "fuse.mendfs" { // at once: no waiting
		t.Fatalf("mounted is %q", kind)
	}
	if _, err := os.ReadFile(filepath.Join(m, "file")); err != nil {
		t.Error(err)
	}
	pid := statusPid(t, m)
	if sid, err := unix.Getsid(pid); err != nil || sid == mySid(t) {
		t.Errorf("the daemon is in session %d, the caller's; %v", sid, err)
	}
	// An error is the caller's, not the daemon's log's.
	refuses(t, exitOperational, []string{"already mounted"}, "mount", "--daemon", "--state", s, b, m)
	refuses(t, exitUsage, []string{"--frobnicate"}, "mount", "--daemon", "--frobnicate", b, m)
	if r := harness.Mendfs(t, "umount", m); r.Exit != exitOK {
		t.Errorf("umount: exit %d: %s", r.Exit, r.Stderr)
	}
	for range 300 {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the daemon, pid %d, lives on", pid)
	_ = syscall.Kill(pid, syscall.SIGKILL) // said already
}

func statusPid(t *testing.T, at string) int {
	t.Helper()
	var answer struct {
		Status []struct {
			Pid int `json:"pid"`
		} `json:"status"`
	}
	r := harness.Mendfs(t, "status", "--json", at)
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || len(answer.Status) != 1 || answer.Status[0].Pid <= 1 {
		t.Fatalf("status: exit %d, %q, %q, %v", r.Exit, r.Stdout, r.Stderr, err)
	}
	return answer.Status[0].Pid
}

func mySid(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	return sid
}

func TestOverMount(t *testing.T) {
	harness.Need(t, harness.Root)
	_, b, _, _ := place(t)
	before := tree(t, b)
	m := harness.New(t, harness.Config{Backing: b, Over: true, Flags: []string{"--simulate", "dax"}})
	if kind := harness.MountedAs(t, b); kind != "fuse.mendfs" {
		t.Fatalf("mounted over %s is %q", b, kind)
	}
	if got := tree(t, b); got != before {
		t.Errorf("through the mount: %s", got)
	}
	data := m.File("new", 2, 4*page)
	bad := rng{Off: page, Len: sector}
	m.Inject("new", bad)
	m.Check("new", data, bad)
	data = m.Overwrite("new", data, data[bad.Off:bad.End()], bad.Off)
	m.Stop()
	if kind := harness.MountedAs(t, b); kind != "" {
		t.Fatalf("after the unmount %s is still covered by %q", b, kind)
	}
	got, err := os.ReadFile(filepath.Join(b, "new"))
	if err != nil {
		t.Fatal(err)
	}
	harness.Compare(t, "what was written through the mount, after it", got, data)
	if err := os.Remove(filepath.Join(b, "new")); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, b); after != before {
		t.Errorf("after the unmount is there: %s", after)
	}
}

// kill -9 leaves a dead mount. The next mount says so and takes its place, also over the
// backing directory itself.
func TestDeadMountIsReplaced(t *testing.T) {
	for name, over := range map[string]bool{"beside": false, "over-mounted": true} {
		t.Run(name, func(t *testing.T) {
			m := harness.New(t, harness.Config{Over: over, Flags: []string{"--simulate", "dax"}})
			data := m.File("f", 1, 4*page)
			m.Inject("f", rng{Off: 0, Len: 1})
			m.Kill()
			if _, err := os.Stat(m.Path("f")); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("in a dead mount: %v, want ENOTCONN", err)
			}
			refuses(t, exitOperational, []string{"dead"}, "status", m.At)
			m.Start()
			m.Check("f", data, rng{Off: 0, Len: sector})
			m.Kill()
			if r := harness.Mendfs(t, "umount", m.At); r.Exit != exitOK {
				t.Errorf("umount of a dead mount: exit %d: %s", r.Exit, r.Stderr)
			}
			if kind := harness.MountedAs(t, m.At); kind != "" {
				t.Errorf("after the umount %s is still covered by %q", m.At, kind)
			}
			m.Start()
		})
	}
}

func TestReadOnlyMount(t *testing.T) {
	_, b, _, _ := place(t)
	before := tree(t, b)
	m := harness.New(t, harness.Config{Backing: b, Flags: []string{"--read-only"}})
	if err := os.WriteFile(m.Path("new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("creating a file: %v, want EROFS", err)
	}
	m.Stop()
	if after := tree(t, b); after != before {
		t.Error("the backing directory has changed")
	}
}

// What was unmounted can be mounted again at once, though the process that
// served it ends a moment later.
func TestMountAgainAtOnce(t *testing.T) {
	m := harness.New(t, harness.Config{})
	for range 20 {
		if err := unix.Unmount(m.At, 0); err != nil {
			t.Fatal(err)
		}
		next := harness.New(t, harness.Config{Backing: m.Backing, State: m.State})
		m.WaitExit()
		m = next
	}
}

// A mount namespace that was made meanwhile may keep what is unmounted here: it is said
// whose that is, since no open file is to be found.
func TestAnotherNamespaceKeepsIt(t *testing.T) {
	harness.Need(t, harness.Root, harness.Program("unshare"))
	m := harness.New(t, harness.Config{})
	other := exec.Command("unshare", "-m", "sh", "-c", "echo; exec cat")
	end, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	made, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		end.Close()
		_ = other.Wait() // it has nothing to say
		m.WaitExit()
	}()
	if _, err := made.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	whose := fmt.Sprintf("still mounted for process %d, in another mount namespace", other.Process.Pid)
	for _, args := range [][]string{
		{"umount", m.At},
		{"umount", m.At}, // it is so still
		{"mount", "--daemon", "--state", m.State, m.Backing, m.At},
	} {
		if r := harness.Mendfs(t, args...); r.Exit != exitOperational || !strings.Contains(r.Stderr, whose) {
			t.Errorf("%s: exit %d: %swant %q", args, r.Exit, r.Stderr, whose)
		}
	}
}
