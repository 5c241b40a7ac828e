package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asCommand in the environment makes this test binary the mendfs command, so
// that the tests run the real thing, children and all, under the race detector
// where there is one.
const asCommand = "MENDFS_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

type result struct {
	stdout, stderr string
	code           int
}

// command is one command line. What hangs gets a SIGTERM, so that a mount that
// should have been refused goes away again.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), asCommand+"=1", "GORACE=atexit_sleep_ms=0") // the race detector's second at each exit adds up
	return cmd
}

// run runs one command line to its end.
func run(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := command(t, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want fails unless the command line ends with the code; it returns what it
// printed.
func want(t *testing.T, code int, args ...string) string {
	t.Helper()
	r := run(t, args...)
	if r.code != code {
		t.Fatalf("mendfs %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.stdout, r.stderr)
	}
	return r.stdout
}

// scene is the directories of one test; whatever was mounted there is gone at
// its end.
type scene struct {
	t                       *testing.T
	backing, mnt, state, in string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("mounting needs /dev/fuse: %v", err)
	}
	dir := t.TempDir()
	s := &scene{t: t, in: dir, backing: filepath.Join(dir, "backing"), mnt: filepath.Join(dir, "mnt"), state: filepath.Join(dir, "state")}
	for _, d := range []string{s.backing, s.mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{s.mnt, s.backing} {
			_ = unix.Unmount(d, unix.MNT_DETACH) // not mounted in most cases
		}
	})
	return s
}

// mount mounts as a daemon and returns the ready line.
func (s *scene) mount(flags ...string) string {
	s.t.Helper()
	args := append([]string{"mount", "--daemon", "--state", s.state}, flags...)
	return want(s.t, 0, append(args, s.backing, s.mnt)...)
}

func (s *scene) umount() {
	s.t.Helper()
	want(s.t, 0, "umount", s.mnt)
	s.untilFree()
}

// untilFree waits until the daemon has given the state directory free.
func (s *scene) untilFree() {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r := run(s.t, "status", "--state", s.state, "--json")
		if r.code == 0 && strings.Contains(r.stdout, `"running":false`) {
			return
		}
	}
	s.t.Fatal("the daemon still runs after 10 s")
}

func (s *scene) write(name string, content []byte) string {
	s.t.Helper()
	path := filepath.Join(s.mnt, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// TestStory is poison, loss, repair and records as a user sees them, also when
// nothing is mounted any more.
func TestStory(t *testing.T) {
	s := newScene(t)
	if ready := s.mount("--simulate", "dax"); !strings.HasPrefix(ready, "mendfs: ") || strings.Count(ready, "\n") != 1 {
		t.Errorf("ready line: %q", ready)
	}
	content := bytes.Repeat([]byte("content!"), 4096)
	file := s.write("file", content)
	want(t, 0, "lost", s.mnt)
	want(t, 0, "inject", file, "--range", "8k+64")
	got, err := os.ReadFile(file)
	if err != nil || len(got) != len(content) {
		t.Fatalf("read %d bytes, %v; want all %d", len(got), err, len(content))
	}
	if out := want(t, exitLossLeft, "lost", file); !strings.Contains(out, "[8192 +512)") || !strings.Contains(out, "lost") {
		t.Errorf("lost: %s", out)
	}
	if err := os.WriteFile(file, content, 0o644); err != nil { // O_TRUNC and anew
		t.Fatal(err)
	}
	want(t, 0, "lost", s.mnt)
	want(t, exitRepaired, "lost", "--all", s.mnt)
	want(t, 0, "lost", "--pending", s.mnt)

	var status struct {
		Status []struct{ Mountpoint, Simulate string }
	}
	decode(t, want(t, 0, "status", "--json", s.mnt), &status)
	if len(status.Status) != 1 || status.Status[0].Mountpoint != s.mnt || status.Status[0].Simulate != "dax" {
		t.Errorf("status: %+v", status)
	}
	for line := range strings.Lines(want(t, 0, "events", "--json", s.mnt)) {
		decode(t, line, &struct{}{})
	}
	s.umount()
	want(t, exitRepaired, "lost", "--all", "--state", s.state)
	want(t, exitRepaired, "lost", "--all", "--state", s.state, filepath.Join(s.backing, "file"))
	if out := want(t, 0, "events", "--state", s.state); !strings.Contains(out, "lost") {
		t.Errorf("events: %s", out)
	}
	want(t, exitUsage, "lost", s.mnt)
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// TestInjections lists, removes and clears.
func TestInjections(t *testing.T) {
	s := newScene(t)
	s.mount("--simulate", "line")
	s.write("file", make([]byte, 1<<20))
	want(t, 0, "inject", s.mnt+"/file", "--range", "0+64", "--range", "4096+1", "--latent")
	var list struct{ Injections []struct{ ID string } }
	decode(t, want(t, 0, "inject", "--list", "--json", s.mnt), &list)
	if len(list.Injections) != 2 {
		t.Fatalf("%+v", list)
	}
	if r := run(t, "inject", "--remove", list.Injections[0].ID, s.mnt); r.code != 0 || !strings.Contains(r.stderr, "taken back") {
		t.Errorf("--remove: %+v", r)
	}
	decode(t, want(t, 0, "inject", "--list", "--json", s.mnt), &list)
	if len(list.Injections) != 1 {
		t.Errorf("%+v after --remove", list)
	}
	first := want(t, 0, "inject", s.mnt, "--random", "10", "--seed", "7")
	if r := run(t, "inject", "--clear", s.mnt); r.code != 0 || !strings.Contains(r.stderr, "injections taken back") {
		t.Errorf("--clear: %+v", r)
	}
	if out := want(t, 0, "inject", "--list", s.mnt); out != "" {
		t.Errorf("after --clear: %s", out)
	}
	second := want(t, 0, "inject", s.mnt, "--random", "10", "--seed", "7")
	if places(first) != places(second) {
		t.Errorf("the same seed gave\n%sand\n%s", first, second)
	}
	s.umount()
}

// places is an injection table without the IDs.
func places(table string) string {
	var b strings.Builder
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		b.WriteString(strings.Join(fields[1:], " ") + "\n")
	}
	return b.String()
}

// TestForegroundEnds by a signal and by umount, with exit code 0 either way.
func TestForegroundEnds(t *testing.T) {
	for name, end := range map[string]func(*scene, *exec.Cmd) error{
		"SIGINT":  func(_ *scene, c *exec.Cmd) error { return c.Process.Signal(syscall.SIGINT) },
		"SIGTERM": func(_ *scene, c *exec.Cmd) error { return c.Process.Signal(syscall.SIGTERM) },
		"umount":  func(s *scene, _ *exec.Cmd) error { want(s.t, 0, "umount", s.mnt); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			cmd := command(t, "mount", "--state", s.state, s.backing, s.mnt)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ready := make([]byte, 4096)
			n, err := stdout.Read(ready)
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			if !strings.Contains(string(ready[:n]), s.mnt) {
				t.Errorf("ready line %q does not name %s", ready[:n], s.mnt)
			}
			if err := end(s, cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, stderr.String())
			}
			if run(t, "status", s.mnt).code == 0 {
				t.Error("still mounted")
			}
		})
	}
}

// TestOverMount covers the backing itself and gives it back.
func TestOverMount(t *testing.T) {
	s := newScene(t)
	inside := filepath.Join(s.backing, "file")
	if err := os.WriteFile(inside, []byte("below"), 0o644); err != nil {
		t.Fatal(err)
	}
	want(t, 0, "mount", "--daemon", "--state", s.state, s.backing)
	if got, err := os.ReadFile(inside); err != nil || string(got) != "below" {
		t.Errorf("%q, %v", got, err)
	}
	if out := want(t, 0, "status", s.backing); !strings.Contains(out, "over-mounted") {
		t.Errorf("status: %s", out)
	}
	want(t, 0, "umount", s.backing)
	s.untilFree()
	if got, err := os.ReadFile(inside); err != nil || string(got) != "below" {
		t.Errorf("after umount: %q, %v", got, err)
	}
}

// TestDemo fits a screen, succeeds, and leaves nothing behind.
func TestDemo(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("mounting needs /dev/fuse: %v", err)
	}
	scratch := t.TempDir()
	t.Setenv("TMPDIR", scratch)
	out := want(t, 0, "demo")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) > 24 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len([]rune(line)) > 100 {
			t.Errorf("%d columns: %s", len([]rune(line)), line)
		}
	}
	left, err := os.ReadDir(scratch)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoInterrupted at several moments: it cleans up and says 32.
func TestDemoInterrupted(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("mounting needs /dev/fuse: %v", err)
	}
	for _, printed := range []int{0, 1, 4, 8} { // lines, when the signal comes
		after := printed
		scratch := t.TempDir()
		t.Setenv("TMPDIR", scratch)
		cmd := command(t, "demo")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewReader(stdout); after > 0; after-- {
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		for begun := 0; begun == 0; time.Sleep(time.Millisecond) { // until its scratch directory is there
			entries, err := os.ReadDir(scratch)
			if err != nil {
				t.Fatal(err)
			}
			begun = len(entries)
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the code is what counts; a pipe holds all that it prints
		if code := cmd.ProcessState.ExitCode(); code != exitCancelled {
			t.Errorf("after %d lines: exit %d, want %d", printed, code, exitCancelled)
		}
		left, err := os.ReadDir(scratch)
		if err != nil || len(left) != 0 {
			t.Errorf("after %d lines, left behind: %v, %v\n%s", printed, left, err, stderr.String())
		}
	}
}
