package fs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// The mounted tests serve the filesystem from a process of its own: a process
// that waits for its own mount can deadlock. It is this test binary again,
// told so by the environment; it lives until its standard input is closed.

const serveEnv = "MENDFS_FS_TEST_SERVE"

// serveConfig is what the serving process is told.
type serveConfig struct {
	Backing, Mountpoint string
	State               string
	Exclusive, ReadOnly bool
	NoAtime             bool
	FS                  string // of the backing: tmpfs, or ext4, xfs or btrfs on a loop device; the temporary directory's if empty
	Below               string // the directory of it that is served, if not the root
	User                uint32 // who serves, if not root
	MaxFds              int
	Protect             Protect
	Timeout             time.Duration
}

func TestMain(m *testing.M) {
	if text := os.Getenv(serveEnv); text != "" {
		if err := serve(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(text string) error {
	var c serveConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	mountpoint := c.Mountpoint
	if c.User != 0 {
		var err error
		if mountpoint, err = becomeUser(c); err != nil {
			return err
		}
	}
	root, err := openRoot(c)
	if err != nil {
		return err
	}
	engine, done, err := newEngine(root, c.State)
	if err != nil {
		return err
	}
	f, err := New(Config{
		Root: root, Engine: engine, AttrTimeout: c.Timeout, EntryTimeout: c.Timeout,
		Exclusive: c.Exclusive, ReadOnly: c.ReadOnly, NoAtime: c.NoAtime, MaxFds: c.MaxFds, Protect: c.Protect,
	})
	if err != nil {
		return err
	}
	o := f.MountOptions()
	var panics atomic.Int64
	o.PanicHandler = func(what any) fuse.Status {
		if panics.Add(1) == 1 {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", what, debug.Stack())
		}
		return fuse.EIO
	}
	o.Name, o.FsName = "mendfstest", "mendfstest"
	if c.User == 0 {
		o.AllowOther, o.DirectMountStrict = true, true
		o.DirectMountFlags = unix.MS_MGC_VAL // suid, dev
	}
	server, err := fuse.NewServer(f, mountpoint, o)
	if err != nil {
		return err
	}
	go server.Serve() // ends with the mount
	if err := server.WaitMount(); err != nil {
		return err
	}
	if c.Protect != ProtectFull {
		if err := f.CheckPassthrough(); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	err = answer(f)
	_ = unix.Unmount(c.Mountpoint, unix.MNT_DETACH) // the test has unmounted it if all went well
	server.Wait()
	if panics.Load() > 0 {
		err = errors.Join(err, errors.New("a request handler panicked"))
	}
	return errors.Join(err, f.Close(), done())
}

func openRoot(c serveConfig) (int, error) {
	if c.User == 0 {
		return unix.OpenTree(unix.AT_FDCWD, c.Backing, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	}
	return unix.Open(c.Backing, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// becomeUser mounts for an ordinary user, as fusermount3 would, and then
// becomes that user. It gives the mountpoint in go-fuse's words.
func becomeUser(c serveConfig) (string, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	id := int(c.User)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,max_read=%d", fd, id, id, 1<<20)
	if err := unix.Mount("mendfstest", c.Mountpoint, "fuse.mendfstest", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return "", err
	}
	err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(id), syscall.Setuid(id))
	return fmt.Sprintf("/dev/fd/%d", fd), err
}

// answer does what the test says, line by line.
func answer(f *FS) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var ino uint64
		var r ranges.Range
		reply := "ok"
		switch _, err := fmt.Sscanf(lines.Text(), "invalidate %d %d %d", &ino, &r.Off, &r.Len); {
		case lines.Text() == "stats":
			text, err := json.Marshal(f.Stats())
			if err != nil {
				return err
			}
			reply = string(text)
		case err != nil:
			return err
		default:
			if err := f.Invalidate(ino, r); err != nil {
				reply = err.Error()
			}
		}
		fmt.Println(reply)
	}
	return nil
}

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
		run(t, "mkfs."+kind, "-q", image)
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

// newEngine is the real engine over real files, with its state in a
// directory; done closes all that belongs to it.
func newEngine(root int, state string) (engine *recovery.Engine, done func() error, err error) {
	name, err := fileid.Filesystem(root)
	if err != nil {
		return nil, nil, err
	}
	id, err := fileid.Of(root)
	if err != nil {
		return nil, nil, err
	}
	j, err := journal.Open(filepath.Join(state, "journal"), name)
	if err != nil {
		return nil, nil, err
	}
	l, err := ledger.Open(filepath.Join(state, "ledger.db"), name, id)
	if err != nil {
		return nil, nil, err
	}
	e, err := event.New(event.Options{Path: filepath.Join(state, "events.jsonl"), Human: os.Stderr})
	if err != nil {
		return nil, nil, err
	}
	engine, err = recovery.New(recovery.Config{Medium: media.New(root), Journal: j, Ledger: l, Events: e, Root: root, FS: name})
	if err != nil {
		return nil, nil, err
	}
	done = func() error { return errors.Join(engine.Close(), e.Close(), j.Shutdown(), l.Close()) }
	return engine, done, engine.Replay()
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
