// Package deadserver shows what becomes of a mount whose server is killed while one
// of its threads waits in the kernel for an answer that only the server could
// give: such a thread can't be interrupted, so the server does not end, and
// /dev/fuse stays open. Programs must not hang with it.
package deadserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// patience is for what comes by itself: nothing is asserted about time.
const patience = 30 * time.Second

func TestMain(m *testing.M) { harness.Main(m) }

// stacks is being told where threads wait in the kernel.
func stacks() error {
	_, err := os.ReadFile("/proc/self/stack")
	return err
}

func eventually(t *testing.T, what string, ok func() bool) bool {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("not after %v: %s", patience, what)
			return false
		}
	}
	return true
}

// hang is a mount whose server waits for a page that a program's unanswered write
// has locked.
type hang struct {
	*harness.Mount
	t      *testing.T
	data   []byte // of the file f before
	pid    int
	helper string // pid of the process that unmounts
	thaw   func() // lets the backing filesystem write again
	writer *program
	killed bool
	ended  chan struct{} // closed when the server is gone, after kill
}

// newHang: the backing filesystem is frozen, so that the write waits there. It is of
// a part of a page that the kernel has not cached: such a page stays locked until
// the answer (Linux 6.18, fuse_fill_write_pages). Then poison is injected, and
// the kernel told to forget the page.
func newHang(t *testing.T, over bool) *hang {
	t.Helper()
	harness.Need(t, harness.Root, stacks, harness.Program("fsfreeze", "dd"))
	disk := harness.NewDisk(t, "ext4", 64)
	backing := filepath.Join(disk.At, "b")
	if err := os.Mkdir(backing, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &hang{t: t, data: harness.Pattern(1, 1<<16), ended: make(chan struct{})}
	harness.WriteFile(t, filepath.Join(backing, "f"), h.data)
	h.Mount = harness.New(t, harness.Config{Backing: backing, Over: over, Flags: []string{"--simulate", "dax"}})
	h.pid = h.Pid()
	h.helper = h.child()
	h.thaw = freeze(t, disk.At)
	h.writer = start(t, "dd", "if=/dev/zero", "of="+h.Path("f"), "bs=100", "count=1", "conv=notrunc")
	eventually(t, "the write waits for the backing filesystem", func() bool { return h.waitsIn("vfs_write") })
	start(t, os.Getenv("MENDFS_BIN"), "inject", "--on-real-files", "--range", "0+64", h.Path("f"))
	if !eventually(t, "the server waits for the page", func() bool { return h.waitsIn(inval) }) {
		t.FailNow()
	}
	t.Cleanup(h.rescue)
	return h
}

// child is the process that the server has started.
func (h *hang) child() string {
	h.t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", h.pid))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err == nil && len(text) > 0 { // a thread may have ended
			return strings.TrimSpace(string(text))
		}
	}
	h.t.Fatal("no process that unmounts")
	return ""
}

const inval = "fuse_reverse_inval_inode"

// waitsIn reports whether one of the server's threads is in that function of the
// kernel.
func (h *hang) waitsIn(function string) bool {
	h.t.Helper()
	return slices.ContainsFunc(h.threads(), func(stack string) bool { return strings.Contains(stack, function) })
}

// alone reports whether nothing is left of the server but what waits for the page.
func (h *hang) alone() bool {
	h.t.Helper()
	left := h.threads()
	return len(left) > 0 && !slices.ContainsFunc(left, func(stack string) bool { return !strings.Contains(stack, inval) })
}

// threads is where the server's threads are in the kernel, without those that have
// ended.
func (h *hang) threads() (stacks []string) {
	h.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", h.pid))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, task := range tasks {
		stack, err := os.ReadFile(task + "/stack")
		if err == nil && !zombie(task) {
			stacks = append(stacks, string(stack))
		}
	}
	return stacks
}

func zombie(proc string) bool {
	stat, err := os.ReadFile(proc + "/stat")
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

// kill is kill -9, and does not wait for the end.
func (h *hang) kill() {
	h.killed = true
	go func() { // ends with the server
		h.Kill()
		close(h.ended)
	}()
}

// rescue has the kernel end the connection if that was not done.
func (h *hang) rescue() {
	h.thaw()
	if !h.killed {
		return
	}
	defer func() { <-h.ended }()
	if !h.alone() {
		return
	}
	h.t.Error("the connection has to be aborted by force")
	root, err := unix.Open(h.At, unix.O_PATH, 0) // keeps it busy
	if err != nil {
		h.t.Error(err)
		return
	}
	defer unix.Close(root)
	if err := unix.Unmount(h.At, unix.MNT_FORCE); !errors.Is(err, unix.EBUSY) {
		h.t.Errorf("umount -f: %v", err)
	}
}

// freeze keeps a filesystem from being written to until thaw, or until this process
// ends.
func freeze(t *testing.T, at string) (thaw func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `fsfreeze -f "$1" && echo frozen && read _; fsfreeze -u "$1"`, "sh", at)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("frozen"))); err != nil {
		t.Fatalf("%s can't be frozen: %v", at, err)
	}
	thawed := false
	thaw = func() {
		if thawed {
			return
		}
		thawed = true
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Errorf("thawing %s: %v", at, err)
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// program is one that runs beside the test.
type program struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
}

func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "LC_ALL=C")
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the program
		_ = p.cmd.Wait() // ProcessState has it
		close(p.ended)
	}()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it may have ended
	return p
}

func (p *program) hasEnded() bool { return closed(p.ended) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
