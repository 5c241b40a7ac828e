package resources

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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

// program does one of the operations that it can be blocked in. Each has a directory of its
// own, since the kernel lets one operation at a time change a directory. What
// it needs is open, and the names are known to the kernel, before it is told
// to go on.
const program = `
import os, signal, sys
op, d = sys.argv[1:]
signal.signal(signal.SIGINT, signal.SIG_DFL)
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
os.chdir(d)
f, sub = os.open("f", os.O_RDWR), os.open("sub", os.O_RDONLY)
os.stat("f"), os.stat("sub")
call = {
    "read": lambda: os.pread(f, 4096, 0),
    "write": lambda: os.pwrite(f, b"new" * 3000, 0),
    "append": lambda: os.pwrite(f, b"end" * 3000, 1000000),
    "fsync": lambda: os.fsync(f),
    "truncate": lambda: os.ftruncate(f, 10),
    "allocate": lambda: os.posix_fallocate(f, 0, 2000000),
    "chmod": lambda: os.chmod("f", 0o600),
    "open": lambda: os.open("f", os.O_RDONLY),
    "create": lambda: os.open("new", os.O_CREAT | os.O_RDWR),
    "lookup": lambda: os.stat("sub/0"),
    "opendir": lambda: os.open("sub", os.O_RDONLY),
    "list": lambda: os.listdir(sub),
    "mkdir": lambda: os.mkdir("new"),
    "mkfifo": lambda: os.mkfifo("new"),
    "symlink": lambda: os.symlink("x", "new"),
    "link": lambda: os.link("f", "new"),
    "unlink": lambda: os.unlink("f"),
    "rmdir": lambda: os.rmdir("empty"),
    "rename": lambda: os.rename("f", "new"),
    "setxattr": lambda: os.setxattr("f", "user.x", b"1"),
    "statfs": lambda: os.statvfs("f"),
}[op]
print("ready", flush=True)
sys.stdin.readline()
call()
print("done, signals:", len(handled), flush=True)
`

var operations = []string{
	"read", "write", "append", "fsync", "truncate", "allocate", "chmod", "open", "create", "lookup", "opendir", "list",
	"mkdir", "mkfifo", "symlink", "link", "unlink", "rmdir", "rename", "setxattr", "statfs",
}

// worker is a program that is about to do one operation, or is blocked in it.
type worker struct {
	op    string
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	ended chan struct{}
	rest  string // what it printed, once it has ended
}

func start(t *testing.T, op, dir string) *worker {
	t.Helper()
	return startProgram(t, op, exec.Command("python3", "-c", program, op, dir))
}

// startScript is start for a script in a directory.
func startScript(t *testing.T, dir, script string) *worker {
	t.Helper()
	cmd := exec.Command("python3", "-c", script)
	cmd.Dir = dir
	return startProgram(t, "script", cmd)
}

func startProgram(t *testing.T, op string, cmd *exec.Cmd) *worker {
	t.Helper()
	w := &worker{op: op, cmd: cmd, ended: make(chan struct{})}
	w.cmd.Stderr = os.Stderr
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.cmd.Process.Kill() }) // it may have ended
	if line, err := w.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%s: %q, %v", op, line, err)
	}
	return w
}

// line lets it go on until it prints this line.
func (w *worker) line(t *testing.T, want string) {
	t.Helper()
	_, err := io.WriteString(w.in, "\n")
	line, err2 := w.out.ReadString('\n')
	if err != nil || err2 != nil || line != want+"\n" {
		t.Fatalf("%s: %q, %v, %v, want %q", w.op, line, err, err2, want)
	}
}

// goOn lets the operation begin.
func (w *worker) goOn(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(w.in, "\n"); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the program
		rest, _ := io.ReadAll(w.out) // a killed one has said nothing
		w.rest = string(rest)
		_ = w.cmd.Wait() // ProcessState has it
		close(w.ended)
	}()
}

// hasEnded waits for it.
func (w *worker) hasEnded(t *testing.T) {
	t.Helper()
	select {
	case <-w.ended:
	case <-time.After(patience):
		wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", w.cmd.Process.Pid)) // as good as it gets
		t.Errorf("%s: does not end; it waits in %s", w.op, wchan)
	}
}

// prepare makes the directories of the operations, and those of others.
func prepare(t *testing.T, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		for _, dir := range []string{"", "sub", "empty"} {
			if err := os.Mkdir(filepath.Join(root, name, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		harness.WriteFile(t, filepath.Join(root, name, "f"), harness.Pattern(1, 100_000))
		keep(t, filepath.Join(root, name, "empty"))
		keep(t, filepath.Join(root, name, "f"))
		for i := range 20 {
			harness.WriteFile(t, filepath.Join(root, name, "sub", fmt.Sprint(i)), []byte("some"))
		}
	}
}

// keep has the inode of path stay in use until the test ends, also when it is removed:
// go-fuse's loopback, which the bad media are, takes a new file that gets the number of
// a removed one for that one, while the kernel has not forgotten it.
func keep(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // nothing was written
}

// A program that is blocked in any operation, since the backing filesystem does not
// answer, dies when it is killed. One that handles its signal waits on. When
// the backing filesystem answers again, everything is as it was left, and
// nothing stays behind.
func TestKilledCallers(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	for _, over := range []bool{false, true} { // beside, the kernel's knowledge lasts a second
		t.Run(map[bool]string{false: "beside", true: "over-mounted"}[over], func(t *testing.T) { killedCallers(t, over) })
	}
}

func killedCallers(t *testing.T, over bool) {
	b := harness.NewBadMedia(t, "-cached")
	prepare(t, b.Dir, append(operations, "patient", "after")...)
	m := harness.New(t, harness.Config{Backing: b.At, Over: over})
	settled(t, m, 0)

	var killed []*worker
	for _, op := range operations {
		killed = append(killed, start(t, op, m.Path(op)))
	}
	patient := start(t, "mkdir", m.Path("patient"))
	b.Freeze()
	signals := []syscall.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT}
	for _, w := range append(killed, patient) {
		w.goOn(t)
	}
	time.Sleep(time.Second) // so that they are blocked; nothing depends on it
	for i, w := range append(killed, patient) {
		s := signals[i%len(signals)]
		if w == patient {
			s = unix.SIGUSR1
		}
		if err := w.cmd.Process.Signal(s); err != nil {
			t.Error(err)
		}
	}
	for i, w := range killed {
		w.hasEnded(t)
		status := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if want := signals[i%len(signals)]; status.Signal() != want {
			t.Errorf("%s: %v, it said %q, want an end by %v", w.op, w.cmd.ProcessState, w.rest, want)
		}
	}
	if h := held(t, m); h.Abandoned < len(operations)/2 {
		t.Errorf("%d requests wait for nobody: the programs were not blocked", h.Abandoned)
	}
	select {
	case <-patient.ended:
		t.Errorf("a program that handles its signal did not wait; it said %q", patient.rest)
	default:
	}

	b.Thaw()
	patient.hasEnded(t)
	if want := "done, signals: 1\n"; patient.rest != want {
		t.Errorf("a program that handles its signal: %q, want %q", patient.rest, want)
	}
	m.Sh(`for i in 1 2 3 4; do echo "after $i" > after/$i; cat after/$i; done; rm after/f; mv after/1 after/f; ls -l after`)
	eventually(t, func() (bool, string) {
		if h := held(t, m); h.Abandoned > 0 {
			return false, fmt.Sprintf("held: %+v", h)
		}
		seen, err1 := tree(m.At)
		there, err2 := tree(b.Dir)
		return err1 == nil && err2 == nil && seen == there, fmt.Sprintf("%v %v, in the mount:\n%s\nbelow:\n%s", err1, err2, seen, there)
	})
	settled(t, m, 0)
	if said := m.Stderr(); strings.Contains(said, "Writev failed") {
		t.Errorf("the mount complains of replies that come too late: %s", said)
	}
}

// While one file hangs, the others do not, and the mount can be taken away
// once its users are killed. The write needs pages that the read has locked.
func TestOneFileHangs(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	b := harness.NewBadMedia(t, "-cached")
	prepare(t, b.Dir, "hangs", "goes")
	m := harness.New(t, harness.Config{Backing: b.At})
	b.Hang("hangs/f")
	workers := []*worker{start(t, "read", m.Path("hangs")), start(t, "write", m.Path("hangs"))}
	for _, w := range workers {
		w.goOn(t)
	}
	for _, op := range []string{"read", "write", "fsync", "truncate", "create", "list", "rename"} {
		w := start(t, op, m.Path("goes"))
		w.goOn(t)
		w.hasEnded(t)
		if w.rest != "done, signals: 0\n" {
			t.Errorf("%s in a file that does not hang: %q", op, w.rest)
		}
		if op == "rename" {
			continue
		}
		if err := os.Remove(filepath.Join(b.Dir, "goes", "new")); err != nil && op == "create" {
			t.Error(err)
		}
	}
	m.Sh(`ls -l hangs hangs/sub`)
	for _, w := range workers {
		// The read may have been served what the write has put into the page cache.
		if err := w.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		w.hasEnded(t)
	}
	if h := held(t, m); h.Abandoned == 0 {
		t.Errorf("held: %+v: nothing was blocked", h)
	}
	if r := harness.Run(t, "umount", m.At); r.Exit != 0 {
		t.Errorf("umount: %s", r.Stderr)
	}
	b.GoOn()
	m.WaitExit()
}
