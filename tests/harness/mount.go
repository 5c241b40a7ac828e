package harness

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a mount may take to appear or to go. The machine may
// be busy, and the binary has the race detector in it.
const patience = 60 * time.Second

// Config says what to mount. What is empty is a fresh directory.
type Config struct {
	Backing, At, State string
	Over               bool     // mount over the backing directory
	Flags              []string // of mendfs mount, such as "--simulate", "dax"
	Env                []string
}

// Mount is a mendfs mount that a child process serves.
type Mount struct {
	Backing, At, State string

	t      testing.TB
	config Config
	daemon *daemon // nil: not running
}

// New mounts, and sees to it that nothing of it is left at the end of the test.
func New(t testing.TB, c Config) *Mount {
	t.Helper()
	Need(t, FUSE)
	if c.Backing == "" {
		c.Backing = subdir(t, "b")
	}
	if c.At == "" && !c.Over {
		c.At = subdir(t, "m")
	}
	if c.State == "" {
		c.State = filepath.Join(Dir(t), "s")
	}
	m := &Mount{Backing: c.Backing, At: c.At, State: c.State, t: t, config: c}
	if c.Over {
		m.At = c.Backing
	}
	t.Cleanup(m.end)
	m.Start()
	return m
}

// Simulated mounts an empty directory with simulated poison.
func Simulated(t testing.TB, profile string, flags ...string) *Mount {
	t.Helper()
	return New(t, Config{Flags: append([]string{"--simulate", profile}, flags...)})
}

func subdir(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(Dir(t), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Path is the path of a file in the mount.
func (m *Mount) Path(rel string) string { return filepath.Join(m.At, rel) }

// Below is the path of the same file in the backing directory.
func (m *Mount) Below(rel string) string { return filepath.Join(m.Backing, rel) }

// Pid is the process that serves the mount.
func (m *Mount) Pid() int { return m.daemon.cmd.Process.Pid }

// Stderr is what the mount has said since it was last started.
func (m *Mount) Stderr() string { return m.daemon.stderr.String() }

// Says checks that the mount has said a text so many times since it was last started. What
// it said a moment ago may still be on its way.
func (m *Mount) Says(text string, times int) {
	m.t.Helper()
	said := 0
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if said = strings.Count(m.Stderr(), text); said >= times {
			break
		}
	}
	if said != times {
		m.t.Errorf("the mount has said %q %d times, want %d: %s", text, said, times, tail(m.Stderr()))
	}
}

// Ready is the line that the mount printed when it was ready.
func (m *Mount) Ready() string { return m.daemon.ready }

// Start mounts with the same directories and flags as before.
func (m *Mount) Start() {
	m.t.Helper()
	if err := m.TryStart(m.config.Flags...); err != nil {
		m.t.Fatal(err)
	}
}

// StartWith mounts with the same directories and other flags, from now on.
func (m *Mount) StartWith(flags ...string) {
	m.t.Helper()
	m.config.Flags = flags
	m.Start()
}

// TryStart is Start with other flags, this once, for mounts that may not succeed.
func (m *Mount) TryStart(flags ...string) error {
	m.t.Helper()
	args := append([]string{"mount", "--state", m.State}, flags...)
	args = append(args, m.Backing)
	if !m.config.Over {
		args = append(args, m.At)
	}
	d, err := startDaemon(m.t, os.Getenv(mendfsBin), m.config.Env, args...)
	if err != nil {
		return fmt.Errorf("mendfs mount: %w; it says: %s", err, d.stderr.String())
	}
	m.daemon = d
	return nil
}

// Stop ends the mount as a service manager does; it must exit with 0 and
// leave nothing mounted.
func (m *Mount) Stop() {
	m.t.Helper()
	d := m.daemon
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Errorf("stopping the mount: %v", err)
	}
	m.WaitExit()
}

// WaitExit waits for the mount to end by itself, with exit status 0 and
// nothing left mounted.
func (m *Mount) WaitExit() {
	m.t.Helper()
	d := m.daemon
	m.daemon = nil
	if code := d.wait(m.t); code != 0 {
		m.t.Errorf("the mount ended with %d; it says: %s", code, d.stderr.String())
	}
	if kind := MountedAs(m.t, m.At); kind == "fuse.mendfs" {
		m.t.Errorf("the mount's process ended, and %s is still mounted", m.At)
	}
}

// Kill is kill -9. The mount is dead afterwards, and Start replaces it.
func (m *Mount) Kill() {
	m.t.Helper()
	d := m.daemon
	m.daemon = nil
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) { // it may have died at a failpoint
		m.t.Errorf("killing the mount: %v", err)
	}
	d.wait(m.t)
}

// Restart unmounts and mounts again.
func (m *Mount) Restart() {
	m.t.Helper()
	m.Stop()
	m.Start()
}

// end leaves nothing: not what runs, not what kill -9 left.
func (m *Mount) end() {
	if m.daemon != nil {
		if m.t.Failed() {
			m.t.Logf("the mount says: %s", tail(m.daemon.stderr.String()))
		}
		m.Stop()
	}
	if MountedAs(m.t, m.At) != "fuse.mendfs" {
		return
	}
	if r := Mendfs(m.t, "umount", m.At); r.Exit != 0 {
		m.t.Errorf("mendfs umount %s: %s", m.At, r.Stderr)
	}
	for MountedAs(m.t, m.At) == "fuse.mendfs" {
		m.t.Errorf("%s has to be detached by force", m.At)
		if err := unix.Unmount(m.At, unix.MNT_DETACH); err != nil {
			m.t.Fatalf("detaching %s: %v", m.At, err)
		}
	}
}

// tail is the last lines of a text: enough to see what went wrong.
func tail(text string) string {
	const most = 4000
	if len(text) <= most {
		return text
	}
	return "... " + text[len(text)-most:]
}

// daemon is a child that runs.
type daemon struct {
	cmd    *exec.Cmd
	ready  string
	stderr *buffer
	done   chan struct{} // closed when the process has ended
}

// childCommand is a command that is told to end if this process dies.
func childCommand(program string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

func newDaemon(cmd *exec.Cmd) *daemon {
	d := &daemon{cmd: cmd, stderr: &buffer{}, done: make(chan struct{})}
	cmd.Stderr = d.stderr
	return d
}

// reap returns when the process has ended.
func (d *daemon) reap() {
	_ = d.cmd.Wait() // ProcessState has it
	close(d.done)
}

// startDaemon starts a child and waits for its first line. The error is that it
// ended, or did not become ready.
func startDaemon(t testing.TB, program string, env []string, args ...string) (*daemon, error) {
	t.Helper()
	d := newDaemon(childCommand(program, env, args...))
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() { // ends with the process
		text, _ := bufio.NewReader(stdout).ReadString('\n') // no line: the process ended, and Wait tells
		line <- strings.TrimSuffix(text, "\n")
		d.reap()
	}()
	select {
	case d.ready = <-line:
	case <-time.After(patience):
		_ = d.cmd.Process.Kill() // reported as not ready
		<-d.done
		return d, errors.New("it is not ready after a minute")
	}
	if d.ready == "" {
		<-d.done
		return d, errors.New("it ended: " + d.cmd.ProcessState.String())
	}
	return d, nil
}

// wait is the exit code; -1 if a signal ended it. A report of the race
// detector or a panic fails the test.
func (d *daemon) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-d.done:
	case <-time.After(patience):
		t.Errorf("pid %d does not end; killing it. It says: %s", d.cmd.Process.Pid, tail(d.stderr.String()))
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // the stacks, into stderr; or it has just ended
		select {
		case <-d.done:
			t.Logf("stacks: %s", d.stderr.String())
		case <-time.After(5 * time.Second):
			_ = d.cmd.Process.Kill() // or it has just ended
			<-d.done
		}
	}
	text := d.stderr.String()
	for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if i := strings.Index(text, bad); i >= 0 {
			t.Errorf("the mount crashed: %.8000s", text[i:])
		}
	}
	return d.cmd.ProcessState.ExitCode()
}

// buffer is a bytes.Buffer that may be read while it is written.
type buffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
