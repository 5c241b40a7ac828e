package mount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/mount/mounttest"
)

// seenAt is what Survey has at the mountpoint.
func seenAt(t *testing.T, point string) []Seen {
	t.Helper()
	all, err := Survey()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(s Seen) bool { return s.Mountpoint != point })
}

func TestSurveyHasTheDeadToo(t *testing.T) {
	b := newBench(t)
	daemon := startHelper(t, b.options())
	if all := seenAt(t, b.point); len(all) != 1 || !all[0].Listed || all[0].Dead || all[0].Pid != daemon.Process.Pid || all[0].Backing != b.backing {
		t.Errorf("running: %+v", all)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // it was killed
	defer func() {
		if err := Unmount(b.point); err != nil {
			t.Error(err)
		}
		if all := seenAt(t, b.point); len(all) != 0 {
			t.Errorf("unmounted: %+v", all)
		}
	}()
	if all := seenAt(t, b.point); len(all) != 1 || all[0].Listed || !all[0].Dead || all[0].Backing != b.backing {
		t.Errorf("dead: %+v", all)
	}
	for _, path := range []string{b.point, b.point + "/below/it"} {
		if _, err := Find(path); err == nil || !strings.Contains(err.Error(), "is dead") {
			t.Errorf("Find(%s): %v", path, err)
		}
	}
}

// TestSurveyHasTheDeadBesideTheEnding: a daemon that ends is listed a little longer than
// its mount has the device number.
func TestSurveyHasTheDeadBesideTheEnding(t *testing.T) {
	b, _ := deadMount(t, false)
	r, err := openRegistry(registryDir())
	if err != nil {
		t.Fatal(err)
	}
	ending, err := r.add(entry{Running: Running{Mountpoint: b.dir + "/gone", Backing: b.dir + "/other", State: b.dir + "/other-state", Pid: os.Getpid()}, Dev: b.device()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ending.close(); err != nil {
			t.Error(err)
		}
	}()
	if all := seenAt(t, b.point); len(all) != 1 || all[0].Listed || !all[0].Dead {
		t.Errorf("%+v", all)
	}
}

// TestStoppedMountIsNotWaitedFor: paths are looked up without a request to a
// server that would not answer, and it is said who doesn't.
func TestStoppedMountIsNotWaitedFor(t *testing.T) {
	b := newBench(t)
	daemon := startHelper(t, b.options())
	link := filepath.Join(b.dir, "link")
	if err := os.Symlink("mnt/below", link); err != nil {
		t.Fatal(err)
	}
	mounttest.Stop(t, daemon.Process.Pid)
	paths := []string{b.point, b.point + "/below/it", link, b.dir + "/../" + filepath.Base(b.dir) + "/mnt/x"}
	said := make(chan error, len(paths))
	for _, path := range paths {
		go func() { // ends within answerTime
			_, err := Find(path)
			said <- err
		}()
	}
	for range paths {
		if err := <-said; err == nil || !strings.Contains(err.Error(), "does not answer") || !strings.Contains(err.Error(), itoa(daemon.Process.Pid)) {
			t.Error(err)
		}
	}
	if all := seenAt(t, b.point); len(all) != 1 || all[0].Dead {
		t.Errorf("stopped: %+v", all)
	}
	if err := daemon.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if running, err := Find(b.point); err != nil || running.Pid != daemon.Process.Pid {
		t.Errorf("goes on: %+v, %v", running, err)
	}
	if err := Unmount(b.point); err != nil {
		t.Error(err)
	}
	if err := daemon.Wait(); err != nil {
		t.Error(err)
	}
}

func TestMountAheadOnlyOfOurs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, dir+"/loop"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("self", dir+"/self"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", ".", "/proc/self/cwd", dir + "/none", dir + "/loop/loop/..", dir + "/self", ""} {
		if m, ok := mountAhead(path); ok {
			t.Errorf("%q: %+v", path, m)
		}
	}
}

func TestPseudoFilesystemsAreRefused(t *testing.T) {
	b := newBench(t)
	for _, backing := range []string{"/proc", "/proc/self", "/sys"} {
		o := b.options()
		o.Backing = backing
		b.refused(o, 16, "where the kernel makes up the files")
	}
}

func TestNamesThatATerminalWouldObey(t *testing.T) {
	b := newBench(t)
	o := b.options()
	o.Backing = b.dir + "/a\x1b[31m\nb\xff"
	b.mkdir(o.Backing)
	o.ReadOnly = true
	m := b.mount(o)
	for name, text := range map[string]string{"ready": m.Ready(), "notices": strings.ReplaceAll(b.stderr.String(), "\n", "")} {
		if strings.ContainsFunc(text, control.IsControl) {
			t.Errorf("%s: %q", name, text)
		}
	}
	if ready := m.Ready(); !strings.Contains(ready, `a\x1b[31m\nb\xff`) {
		t.Errorf("ready: %q", ready)
	}
	if state := filepath.Base(defaultState(o.Backing, meta{})); !strings.HasPrefix(state, "a_[31m_b_-") {
		t.Errorf("state directory: %q", state)
	}
}
