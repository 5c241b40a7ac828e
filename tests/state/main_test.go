// Package state shows what a mount does with a state directory that is missing,
// full, read-only, damaged or in the wrong place, and how what it keeps gets out.
package state

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector

	exitOK          = 0
	exitLossLeft    = 4
	exitOperational = 8
	exitUsage       = 16
)

type rng = harness.Range

func TestMain(m *testing.M) { harness.Main(m) }

// volume is a small filesystem in memory, for state directories.
type volume struct {
	t  *testing.T
	at string
}

func newVolume(t *testing.T, options string) *volume {
	t.Helper()
	harness.Need(t, harness.Root, harness.FUSE)
	v := &volume{t: t, at: mkdir(t, harness.Dir(t), "v")}
	if err := unix.Mount("tmpfs", v.at, "tmpfs", 0, "mode=0755,"+options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the mount that has its state there
		if err := unix.Unmount(v.at, 0); err != nil {
			t.Errorf("unmounting %s: %v", v.at, err)
		}
	})
	return v
}

func (v *volume) path(name string) string { return filepath.Join(v.at, name) }

// fill leaves no room, also of what a filesystem sets aside until it has written.
func (v *volume) fill() {
	v.t.Helper()
	f, err := os.Create(v.path("filler"))
	if err != nil {
		v.t.Fatal(err)
	}
	for wrote := true; wrote; {
		wrote = false
		for _, err = f.Write(make([]byte, page)); err == nil; _, err = f.Write(make([]byte, page)) {
			wrote = true
		}
		if !errors.Is(err, unix.ENOSPC) {
			v.t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			v.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) makeRoom() {
	v.t.Helper()
	if err := os.Remove(v.path("filler")); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) remount(flags uintptr) {
	v.t.Helper()
	if err := unix.Mount("", v.at, "", unix.MS_REMOUNT|flags, ""); err != nil {
		v.t.Fatal(err)
	}
}

func mkdir(t *testing.T, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ends is a backing directory with a file, and a mountpoint.
func ends(t *testing.T) (backing, at string) {
	t.Helper()
	dir := harness.Dir(t)
	backing, at = mkdir(t, dir, "b"), mkdir(t, dir, "m")
	harness.WriteFile(t, filepath.Join(backing, "file"), harness.Pattern(1, 3*page))
	return backing, at
}

// refused is a mount with the state directory that must not come about: one line
// that has the words and a next step, and nothing mounted.
func refused(t *testing.T, exit int, state string, words ...string) {
	t.Helper()
	backing, at := ends(t)
	refusedFor(t, exit, backing, at, state, words...)
}

func refusedFor(t *testing.T, exit int, backing, at, state string, words ...string) {
	t.Helper()
	r := harness.Mendfs(t, "mount", "--daemon", "--state", state, backing, at)
	line, rest, _ := strings.Cut(r.Stderr, "\n")
	if r.Exit != exit || r.Stdout != "" || rest != "" || !strings.HasPrefix(line, "mendfs") || !strings.Contains(line, "; ") {
		t.Errorf("exit %d, %q, %q; want exit %d and one line with a next step", r.Exit, r.Stdout, r.Stderr, exit)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("%q does not say %q", line, word)
		}
	}
	if kind := harness.MountedAs(t, at); kind != "" {
		t.Errorf("%s is mounted", kind)
	}
}

// eventually waits for something that takes a moment.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 600 {
		if is() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: not within half a minute", what)
}

// said is what a mount had to say until it was ready; the end of that is known, and
// may come a moment later.
func said(t *testing.T, m *harness.Mount) string {
	t.Helper()
	eventually(t, "the notices of a mount", func() bool { return strings.Contains(m.Stderr(), "only root can reach the files") })
	return m.Stderr()
}

func read(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
