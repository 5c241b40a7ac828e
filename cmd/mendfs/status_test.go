package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/mount/mounttest"
	"github.com/mendfs/mendfs/recovery"
)

// daemon is the process of the scene's mount.
func (s *scene) daemon() int {
	s.t.Helper()
	var status struct{ Status []struct{ Pid int } }
	decode(s.t, want(s.t, 0, "status", "--json", s.mnt), &status)
	return status.Status[0].Pid
}

func TestDeadMountsAreListed(t *testing.T) {
	s := newScene(t)
	s.mount()
	pid := s.daemon()
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil || string(comm) != "mendfs\n" {
		t.Errorf("the daemon is called %q, %v", comm, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	untilEnded(t, pid)
	dead := s.mnt + "\n  running  dead: umount it"
	out := wantTrouble(t, "status")
	for end := time.Now().Add(20 * time.Second); !strings.Contains(out, dead) && time.Now().Before(end); { // who unmounts may still have its place in the list
		time.Sleep(20 * time.Millisecond)
		out = wantTrouble(t, "status")
	}
	if !strings.Contains(out, dead) {
		t.Errorf("status: %s", out)
	}
	var status struct {
		Status []struct {
			Mountpoint    string
			Running, Dead bool
		}
	}
	decode(t, wantTrouble(t, "status", "--json"), &status)
	found := false
	for _, m := range status.Status {
		found = found || m.Mountpoint == s.mnt && m.Dead && !m.Running
	}
	if !found {
		t.Errorf("status --json: %+v", status)
	}
	want(t, exitOperational, "status", s.mnt)
	want(t, 0, "umount", s.mnt)
}

// wantTrouble is want for the status of all mounts, where an operational failure has
// to be among what the exit code says; the rest may be of other tests' mounts.
func wantTrouble(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, args...)
	if r.code&exitOperational == 0 {
		t.Errorf("mendfs %q: %+v", args, r)
	}
	return r.stdout
}

// untilEnded waits for a process that is not ours to wait for.
func untilEnded(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd") // a zombie has none
		if err != nil || len(fds) == 0 {
			return
		}
	}
	t.Fatalf("process %d still runs after 10 s", pid)
}

// TestStoppedDaemon: the verbs say who does not answer, and the first signal
// ends them while they wait for it.
func TestStoppedDaemon(t *testing.T) {
	s := newScene(t)
	s.mount()
	file := s.write("file", []byte("text"))
	pid := s.daemon()
	mounttest.Stop(t, pid)
	defer func() {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Error(err)
		}
		s.umount()
	}()
	lost := command(t, "lost", file)
	var said bytes.Buffer
	lost.Stderr = &said
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	byState := command(t, "lost", "--state", s.state)
	if err := byState.Start(); err != nil {
		t.Fatal(err)
	}
	status := command(t, "status", s.mnt)
	status.Stderr = os.Stderr
	if err := status.Start(); err != nil {
		t.Fatal(err)
	}
	untilAsking(t, status.Process.Pid)
	if err := status.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitOf(status.Wait()); code != exitCancelled {
		t.Errorf("status, interrupted: exit %d", code)
	}
	if code := exitOf(byState.Wait()); code != exitOperational {
		t.Errorf("lost --state: exit %d", code)
	}
	code := exitOf(lost.Wait())
	if code != exitOperational || !strings.Contains(said.String(), "the mount's daemon (pid "+strconv.Itoa(pid)+")") {
		t.Errorf("lost: exit %d: %s", code, &said)
	}
}

func exitOf(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// untilAsking waits until the process has a socket: its signals are caught then.
func untilAsking(t *testing.T, pid int) {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		fds, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
				return
			}
		}
	}
	t.Fatal("it asks nobody within 10 s")
}

// runAs is run for an ordinary user.
func runAs(t *testing.T, u *mounttest.User, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := command(t, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &stdout, &stderr, append(cmd.Env, u.Env()...)
	u.RunAs(cmd, mounttest.UserID)
	return result{code: exitOf(cmd.Run()), stdout: stdout.String(), stderr: stderr.String()}
}

func TestStatusOfOthersMounts(t *testing.T) {
	u := mounttest.NewUser(t)
	s := newScene(t)
	s.mount()
	r := runAs(t, u, "status")
	if r.code != 0 || strings.Contains(r.stdout, s.mnt) || !strings.Contains(r.stderr, "of mendfs by other users") {
		t.Errorf("of root's: %+v", r)
	}
	s.umount()
}

// usersMayMount runs the rest of the test again in a mount namespace where /dev/fuse is
// for all, as it is on most machines; it reports whether this is that run.
func usersMayMount(t *testing.T, u *mounttest.User) bool {
	t.Helper()
	const inside = "MENDFS_TEST_USERS_MAY_MOUNT"
	if os.Getenv(inside) != "" {
		return true
	}
	cmd := u.Unshare("666", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("where users may mount: %v", err)
	}
	return false
}

func TestRootAsksUsersMounts(t *testing.T) {
	u := mounttest.NewUser(t)
	if !usersMayMount(t, u) {
		return
	}
	db, mnt := u.Mkdir("db"), u.Mkdir("mnt")
	if r := runAs(t, u, "mount", "--daemon", db, mnt); r.code != 0 {
		t.Fatalf("mount: %+v", r)
	}
	// The exit code of all is that of other tests' mounts, too.
	for _, out := range []string{want(t, 0, "status", mnt), run(t, "status").stdout} {
		if !strings.Contains(out, mnt+"\n  running") || !strings.Contains(out, ", by user 65534") || !strings.Contains(out, "pid ") {
			t.Errorf("status: %s", out)
		}
	}
	pid := (&scene{t: t, mnt: mnt}).daemon()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	untilEnded(t, pid)
	if out := wantTrouble(t, "status"); !strings.Contains(out, mnt+"\n  running  dead, by user 65534") {
		t.Errorf("dead: %s", out)
	}
	want(t, 0, "umount", mnt)
}

func TestMisspeltPathsAreNotToBeMade(t *testing.T) {
	s := newScene(t)
	for _, verb := range [][]string{{"lost"}, {"inject", "--range", "0+1"}, {"status"}, {"umount"}} {
		r := run(t, append(verb, s.in+"/none")...)
		if r.code != exitUsage || !strings.Contains(r.stderr, "check the spelling") || strings.Contains(r.stderr, "create") {
			t.Errorf("%v: %+v", verb, r)
		}
	}
	if r := run(t, "inject", s.in, "--range", "0+1"); r.code != exitUsage || strings.Contains(r.stderr, "--state") {
		t.Errorf("inject: %+v", r)
	}
	if r := run(t, "lost", s.in); r.code != exitUsage || !strings.Contains(r.stderr, "--state") {
		t.Errorf("lost: %+v", r)
	}
}

// What a mount does otherwise than by default is shown.
func TestStatusShowsWhatIsNotDefault(t *testing.T) {
	var out strings.Builder
	s := control.Status{Running: true, State: "/s", Semantics: "recover", Repair: "eager", ReadOnlyNow: true, BackingReadOnly: true, Engine: map[string]any{"breaker_pages": 7.0, "outage": true}}
	if err := printStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"repair eager", "read-only by a remount", "read-only below", "7 pages", "within the last minute"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
	out.Reset()
	s.Repair, s.ReadOnlyNow, s.BackingReadOnly, s.Engine = "on-write", false, false, map[string]any{"breaker_pages": float64(recovery.DefaultBreaker)}
	if err := printStatus(&out, s); err != nil || strings.Contains(out.String(), "breaker") || strings.Contains(out.String(), "repair") || strings.Contains(out.String(), "read-only") {
		t.Errorf("%v: %s", err, out.String())
	}
}
