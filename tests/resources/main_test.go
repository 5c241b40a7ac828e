// Package resources shows what a mount takes and gives back, and what it does
// when things run short: descriptors, memory, space, quotas, or an answer from
// the backing filesystem.
package resources

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/tests/harness"
)

// patience is for what comes by itself: nothing is asserted about time.
const patience = 60 * time.Second

func TestMain(m *testing.M) { harness.Main(m) }

// eventually waits for the kernel, whose FORGETs and RELEASEs come later.
func eventually(t *testing.T, ok func() (bool, string)) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		done, why := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", patience, why)
		}
	}
}

// server is the process that serves a mount, as seen from outside.
type server struct {
	t   *testing.T
	pid int
}

func serverOf(t *testing.T, m *harness.Mount) server { t.Helper(); return server{t, status(t, m).Pid} }

// status asks the mount without going through its files, as the verb does to
// find out whose they are: they may hang.
func status(t *testing.T, m *harness.Mount) control.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := control.Dial(m.State).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fds is how many descriptors it has.
func (s server) fds() int {
	s.t.Helper()
	list, err := os.ReadDir(s.proc("fd"))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(list)
}

// field is a number of /proc/PID/status; memory is in KiB.
func (s server) field(name string) int {
	s.t.Helper()
	text, err := os.ReadFile(s.proc("status"))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatalf("%s has no %s", s.proc("status"), name)
	return 0
}

func (s server) proc(file string) string { return filepath.Join("/proc", strconv.Itoa(s.pid), file) }

func held(t *testing.T, m *harness.Mount) control.Held { t.Helper(); return *status(t, m).Held }

// forget makes the kernel forget what nobody uses.
func forget(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
}

// settled waits until nothing is held any more but the root and the given
// number of other inodes at most.
func settled(t *testing.T, m *harness.Mount, inodes int) {
	t.Helper()
	eventually(t, func() (bool, string) {
		forget(t)
		h := held(t, m)
		return h.Handles == 0 && h.Abandoned == 0 && h.Inodes <= 1+inodes, fmt.Sprintf("held: %+v", h)
	})
}

// tree is all that can be seen of the files in a directory, one line for each.
func tree(dir string) (string, error) {
	var all bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&all, "%s %o %d", strings.TrimPrefix(path, dir), st.Mode, st.Nlink)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, " %d %.40q %.40q", st.Size, content, content[max(0, len(content)-40):])
		}
		all.WriteByte('\n')
		return nil
	})
	return all.String(), err
}
