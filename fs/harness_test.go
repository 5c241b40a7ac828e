package fs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mounted is a backing directory and a mount of it.
type mounted struct {
	t            *testing.T
	backing, mnt string
	config       serveConfig
	cmd          *exec.Cmd // nil: not mounted
	pid          int
	in           *os.File
	out          *bufio.Scanner
}

// mountNew serves a new directory. It is unmounted when the test ends, and the
// serving process has to end well by itself.
func mountNew(t *testing.T, c serveConfig) *mounted {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Skip("SKIP mounted tests: only root can mount and act as other users")
	}
	dir := newDir(t)
	m := &mounted{t: t, backing: filepath.Join(dir, "backing"), mnt: filepath.Join(dir, "mnt")}
	c.State = filepath.Join(dir, "state")
	for _, dir := range []string{m.backing, m.mnt, c.State} {
		mkdir(t, dir)
		if err := os.Chown(dir, int(c.User), int(c.User)); err != nil {
			t.Fatal(err)
		}
	}
	if c.FS != "" {
		mountFS(t, c.FS, m.backing)
	}
	if c.Pmem != nil {
		m.backing = c.Pmem.At
	}
	if c.Below != "" {
		m.backing = filepath.Join(m.backing, c.Below)
		mkdir(t, m.backing)
	}
	c.Backing, c.Mountpoint = m.backing, m.mnt
	m.start(c)
	return m
}

// mountFS mounts a new filesystem until the test ends.
func mountFS(t *testing.T, kind, at string) {
	t.Helper()
	var err error
	if kind == "tmpfs" {
		err = unix.Mount("mendfstest", at, kind, 0, "")
	} else {
		image := filepath.Join(newDir(t), "image")
		const size = 320 << 20 // the least that mkfs.xfs takes is 300 MiB; most of it is a hole
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
			t.Fatal(err)
		}
		mkfs(t, kind, image)
		run(t, "mount", "-o", "loop", "-t", kind, image, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
}

// mkfs tries for a while: mkfs.btrfs looks at all mounts of the machine, of which some are
// dead for a moment, while other tests run.
func mkfs(t *testing.T, kind, image string) {
	t.Helper()
	var out []byte
	var err error
	for range 10 {
		if out, err = exec.Command("mkfs."+kind, "-q", image).CombinedOutput(); err == nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mendfs-fs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // for the other users
		t.Fatal(err)
	}
	return dir
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func (m *mounted) start(c serveConfig) {
	m.t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		m.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	inR, inW, err := os.Pipe()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.Stdin = inR
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	inR.Close()
	m.in, m.out, m.pid = inW, bufio.NewScanner(out), cmd.Process.Pid
	m.config, m.cmd = c, cmd
	m.t.Cleanup(m.stop)
	if line := m.line(); line != "ready" {
		m.t.Fatalf("the serving process says %q", line)
	}
}

// again unmounts, and mounts in a new process.
func (m *mounted) again() {
	m.t.Helper()
	m.stop()
	m.start(m.config)
}

// stop unmounts and waits; a process that hangs is killed, which ends the
// requests that wait for it.
func (m *mounted) stop() {
	cmd := m.cmd
	if cmd == nil {
		return
	}
	m.cmd = nil
	err := unix.Unmount(m.mnt, 0)
	for try := 0; err == unix.EBUSY && try < 20; try++ { // releases are asynchronous
		time.Sleep(50 * time.Millisecond)
		err = unix.Unmount(m.mnt, 0)
	}
	if err != nil {
		m.t.Errorf("umount: %v", err)
		_ = unix.Unmount(m.mnt, unix.MNT_DETACH) // whatever is left of it
	}
	m.in.Close()
	kill := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }) // it may be gone by now
	defer kill.Stop()
	if err := cmd.Wait(); err != nil {
		m.t.Errorf("serving process: %v", err)
	}
}

func (m *mounted) line() string {
	m.t.Helper()
	if !m.out.Scan() {
		m.t.Fatalf("the serving process has nothing to say: %v", m.out.Err())
	}
	return m.out.Text()
}

func (m *mounted) ask(format string, args ...any) string {
	m.t.Helper()
	if _, err := fmt.Fprintf(m.in, format+"\n", args...); err != nil {
		m.t.Fatal(err)
	}
	return m.line()
}

func (m *mounted) stats() (s Stats) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.ask("stats")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// fds is how many descriptors the serving process really has.
func (m *mounted) fds() int {
	m.t.Helper()
	list, err := os.ReadDir("/proc/" + strconv.Itoa(m.pid) + "/fd")
	if err != nil {
		m.t.Fatal(err)
	}
	return len(list)
}

func (m *mounted) path(name string) string { return filepath.Join(m.mnt, name) }
func (m *mounted) below(name string) string {
	return filepath.Join(m.backing, name)
}

// user is who a script runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
}

// sh runs a script in a directory, as somebody, and gives all it says.
func sh(t *testing.T, dir string, who user, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "umask 022; "+script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/"}
	if who.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups}}
	}
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil {
		text += err.Error() + "\n"
	}
	return strings.ReplaceAll(text, dir, ".")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// eventually waits for the kernel, whose FORGETs and RELEASEs come later.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 10 s: %s", what)
		}
	}
}
