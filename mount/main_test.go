package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test program mount "BACKING MOUNTPOINT STATE PROFILE"
// (separated by newlines) and wait, so that tests have a process to kill.
const helperEnv = "MENDFS_TEST_MOUNT"

func TestMain(m *testing.M) {
	if u := UnmountsFor(); u != nil {
		if err := u.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if d := Background(); d != nil {
		os.Exit(daemonHelper(d))
	}
	if spec := os.Getenv(helperEnv); spec != "" {
		os.Exit(mountHelper(spec))
	}
	if spec := os.Getenv(restrictEnv); spec != "" {
		os.Exit(restrictHelper(spec))
	}
	if dir := os.Getenv(userEnv); dir != "" {
		os.Exit(userHelper(dir))
	}
	os.Exit(m.Run())
}

func mountHelper(spec string) int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	f := strings.Split(spec, "\n")
	m, err := New(Options{Backing: f[0], Mountpoint: f[1], State: f[2], Simulate: f[3], Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(m.Ready())
	go func() { <-stop; _ = m.Unmount() }() // ends with the process
	if err := m.Wait(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startHelper runs a mount in a process of its own.
func startHelper(t *testing.T, o Options) *exec.Cmd {
	t.Helper()
	spec := strings.Join([]string{o.Backing, o.Mountpoint, o.State, o.Simulate}, "\n")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+spec)
	cmd.Stderr = os.Stderr
	// Of a group that loses its session's shell the kernel continues what is stopped.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // most have ended by then
	line := make([]byte, 4096)
	if n, err := out.Read(line); err != nil || !strings.Contains(string(line[:n]), "ready") {
		t.Fatalf("the helper said %q, %v", line[:n], err)
	}
	return cmd
}

// needRoot skips tests that mount; .ci runs them as root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: mounting without fusermount3 needs root")
	}
}

// output is a writer for several goroutines.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// bench is directories for one mount.
type bench struct {
	t                     *testing.T
	dir                   string
	backing, point, state string
	stderr                output
}

func newBench(t *testing.T) *bench {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	b := &bench{t: t, dir: dir, backing: filepath.Join(dir, "db"), point: filepath.Join(dir, "mnt"), state: filepath.Join(dir, "state")}
	b.mkdir(b.backing)
	b.mkdir(b.point)
	t.Cleanup(b.sweep)
	return b
}

func (b *bench) mkdir(path string) {
	b.t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) write(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) read(path string) string {
	b.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

func (b *bench) options() Options {
	return Options{Backing: b.backing, Mountpoint: b.point, State: b.state, Stderr: &b.stderr}
}

// mount mounts, and ends it with the test.
func (b *bench) mount(o Options) *Mount {
	b.t.Helper()
	m, err := New(o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.end(m) })
	b.neverPoll(m.path)
	return m
}

// neverPoll makes the kernel learn that the mount answers no POLL. This process
// serves the mount and opens files on it: the runtime would ask for POLL while
// it holds the thread that has to answer. go-fuse has a file for that.
func (b *bench) neverPoll(path string) {
	b.t.Helper()
	fd, err := unix.Open(filepath.Join(path, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		b.t.Fatal(err)
	}
}

// end unmounts and waits; a mount that has ended stays ended.
func (b *bench) end(m *Mount) {
	b.t.Helper()
	if err := m.Unmount(); err != nil {
		b.t.Error(err)
	}
	b.wait(m)
}

func (b *bench) wait(m *Mount) {
	b.t.Helper()
	done := make(chan error, 1)
	go func() { done <- m.Wait() }() // ends with the mount, or the test fails
	select {
	case err := <-done:
		if err != nil {
			b.t.Error(err)
		}
	case <-time.After(20 * time.Second):
		b.t.Error("the mount did not end within 20 s")
	}
}

// sweep unmounts what a failed test has left below its directory.
func (b *bench) sweep() {
	all, err := mounts()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range all {
		if below(b.dir, e.Mountpoint) {
			b.t.Errorf("%s (%s) was left mounted", e.Mountpoint, e.Type)
			if err := unix.Unmount(e.Mountpoint, unix.MNT_DETACH); err != nil {
				b.t.Error(err)
			}
		}
	}
}

// refused checks that New refuses o with that exit code and text, and changes
// nothing.
func (b *bench) refused(o Options, exit int, text string) {
	b.t.Helper()
	before := b.tree()
	m, err := New(o)
	if err == nil {
		b.end(m)
		b.t.Fatal("was mounted")
	}
	var e *Error
	switch {
	case !errors.As(err, &e):
		b.t.Errorf("the error is a %T: %v", err, err)
	case e.Exit != exit || !strings.Contains(err.Error(), text):
		b.t.Errorf("exit code %d: %v; want %d and %q", e.Exit, err, exit, text)
	case e.Next == "":
		b.t.Errorf("%v: does not say what to do", err)
	case strings.Contains(err.Error(), "\n"):
		b.t.Errorf("more than a line: %v", err)
	}
	if after := b.tree(); after != before {
		b.t.Errorf("something changed; before:\n%s\nafter:\n%s", before, after)
	}
}

// tree is the names below the bench's directory, and what is mounted there.
func (b *bench) tree() string {
	b.t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, err error) error {
		fmt.Fprintln(&text, path)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	all, err := mounts()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range all {
		if below(b.dir, e.Mountpoint) {
			fmt.Fprintln(&text, e.Mountpoint, e.Type)
		}
	}
	return text.String()
}
