package deadserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

var places = map[string]bool{"over-mounted": true, "beside": false}

// A server that is killed while it hangs is as dead as any other one.
func TestKilledServerThatHangs(t *testing.T) {
	for name, over := range places {
		t.Run(name, func(t *testing.T) {
			h := newHang(t, over)
			h.kill()
			h.writeFails()
			h.isDead()
			h.thaw()
			h.isGone()
			eventually(t, "the process that unmounts has ended", func() bool { return zombie("/proc/" + h.helper) })
			h.isDead() // still: nobody has uncovered anything
			h.mountAgain()
		})
	}
}

// The same where nobody is left who could end the connection: a new mount in its
// place does.
func TestMountEndsAHang(t *testing.T) {
	forsaken(t, func(_ *testing.T, h *hang) {
		h.mountAgain()
		h.writeFails()
		h.isGone()
	})
}

func TestUmountEndsAHang(t *testing.T) {
	forsaken(t, func(t *testing.T, h *hang) {
		if r := harness.Mendfs(t, "status", h.At); r.Exit == 0 || !strings.Contains(r.Stderr, "is dead") {
			t.Errorf("mendfs status: exit %d: %s", r.Exit, r.Stderr)
		}
		if r := harness.Mendfs(t, "umount", h.At); r.Exit != 0 {
			t.Errorf("mendfs umount: %s", r.Stderr)
		}
		if kind := harness.MountedAs(t, h.At); kind != "" {
			t.Errorf("%s is still mounted", kind)
		}
		h.writeFails()
		h.isGone()
		h.mountAgain()
	})
}

// forsaken runs a test for each place with a server that was killed while it
// hung, and the process that would end the connection with it: it still hangs.
func forsaken(t *testing.T, test func(t *testing.T, h *hang)) {
	t.Helper()
	for name, over := range places {
		t.Run(name, func(t *testing.T) {
			h := newHang(t, over)
			h.killHelper()
			h.kill()
			h.thaw()
			h.stillHangs()
			test(t, h)
		})
	}
}

// While the backing filesystem has not answered the killed server, no other one may
// serve its files. Who wants to is told so.
func TestMountWaitsForTheBackingFilesystem(t *testing.T) {
	h := newHang(t, true)
	h.kill()
	h.writeFails()
	if r := h.mount(); r.Exit == 0 || !strings.Contains(r.Stderr, "was killed, but has not ended") {
		t.Errorf("mendfs mount: exit %d: %s", r.Exit, r.Stderr)
	}
	h.isDead()
	h.thaw()
	h.isGone()
	h.mountAgain()
}

// A server that hangs and lives is let alone: the backing filesystem may answer
// at last.
func TestHangThatPasses(t *testing.T) {
	h := newHang(t, true)
	time.Sleep(3 * time.Second) // so that the process that unmounts has looked; nothing depends on it
	h.thaw()
	if eventually(t, "the write has ended", h.writer.hasEnded) && !h.writer.cmd.ProcessState.Success() {
		t.Errorf("the write has failed: %s", h.writer.stderr.String())
	}
	if zombie("/proc/" + h.helper) {
		t.Error("the process that unmounts has ended")
	}
}

func (h *hang) killHelper() {
	h.t.Helper()
	pid, err := strconv.Atoi(h.helper)
	if err == nil {
		err = unix.Kill(pid, unix.SIGKILL)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// stillHangs holds without anybody's help, or this tests nothing.
func (h *hang) stillHangs() {
	h.t.Helper()
	if !eventually(h.t, "nothing is left but what hangs", h.alone) || closed(h.ended) || h.writer.hasEnded() {
		h.t.Fatal("it does not hang")
	}
}

func (h *hang) writeFails() {
	h.t.Helper()
	if !eventually(h.t, "the program's write has ended", h.writer.hasEnded) {
		h.t.FailNow()
	}
	for _, errno := range []string{"Transport endpoint is not connected", "Software caused connection abort", "Input/output error"} {
		if strings.Contains(h.writer.stderr.String(), errno) {
			return
		}
	}
	h.t.Errorf("the program's write: %v, %s", h.writer.cmd.ProcessState, h.writer.stderr.String())
}

// isDead is that the mount is there, and gives ENOTCONN.
func (h *hang) isDead() {
	h.t.Helper()
	if _, err := os.ReadDir(h.At); !errors.Is(err, unix.ENOTCONN) {
		h.t.Errorf("listing %s: %v, want ENOTCONN", h.At, err)
	}
	if kind := harness.MountedAs(h.t, h.At); kind != "fuse.mendfs" {
		h.t.Errorf("%q is mounted at %s", kind, h.At)
	}
}

func (h *hang) isGone() {
	h.t.Helper()
	if !eventually(h.t, fmt.Sprintf("the server (pid %d) is gone", h.pid), func() bool { return closed(h.ended) }) {
		h.t.FailNow()
	}
}

func (h *hang) mount() harness.Result {
	h.t.Helper()
	args := []string{"mount", "--daemon", "--state", h.State, "--simulate", "dax", h.Backing}
	if h.At != h.Backing {
		args = append(args, h.At)
	}
	return harness.Mendfs(h.t, args...)
}

// mountAgain mounts, and looks whether all is well.
func (h *hang) mountAgain() {
	h.t.Helper()
	if r := h.mount(); r.Exit != 0 {
		h.t.Fatalf("mendfs mount: exit %d: %s", r.Exit, r.Stderr)
	}
	got, err := os.ReadFile(filepath.Join(h.At, "f"))
	if err != nil || !bytes.Equal(got[harness.Page:], h.data[harness.Page:]) {
		h.t.Errorf("f: %v, %d bytes, or not those that were there", err, len(got))
	}
	harness.WriteFile(h.t, h.Path("new"), []byte("new"))
}
