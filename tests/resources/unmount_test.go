package resources

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// A mount in use can't be unmounted, but detached: what is open and mapped goes
// on working, and the daemon ends with the last of it.
func TestUnmountInUse(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	m := harness.New(t, harness.Config{})
	data := m.File("f", 1, 1<<20)
	w := startScript(t, m.At, `
import mmap, os, sys
f = os.open("f", os.O_RDWR)
mapped = mmap.mmap(f, 1 << 20)
os.chdir("/")
print("ready", flush=True)
sys.stdin.readline()
os.pwrite(f, b"written", 100)
mapped[500000:500006] = b"mapped"
mapped.flush()
os.fsync(f)
assert os.pread(f, 6, 500000) == b"mapped" and mapped[100:107] == b"written"
os.close(f)
mapped[500006:500010] = b"more"
mapped.flush()
print("done", flush=True)
sys.stdin.readline()
`)
	if err := unix.Unmount(m.At, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("umount: %v, want EBUSY", err)
	}
	if r := harness.Mendfs(t, "umount", m.At); r.Exit == 0 || !strings.Contains(r.Stderr, "in use") || !strings.Contains(r.Stderr, "; ") {
		t.Errorf("mendfs umount: exit %d, %q, want that it is in use, and what next", r.Exit, r.Stderr)
	}
	if err := unix.Unmount(m.At, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.Path("f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after umount -l the file is still there: %v", err)
	}
	w.line(t, "done")
	if err := unix.Kill(m.Pid(), 0); err != nil {
		t.Errorf("the daemon has ended while a file is mapped: %v", err)
	}
	w.goOn(t)
	w.hasEnded(t)
	m.WaitExit()
	want := harness.Lay(data, []byte("written"), 100)
	want = harness.Lay(want, []byte("mappedmore"), 500000)
	got, err := os.ReadFile(m.Below("f"))
	if err != nil {
		t.Fatal(err)
	}
	harness.Compare(t, "f below", got, want)
}

// What a remount changes, it changes as on any filesystem.
func TestRemount(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	m := harness.New(t, harness.Config{})
	data := m.File("kept", 1, 100_000)
	remount(t, m.At, "ro")
	got := errnos(t, m.At, writes)
	if strings.Count(got, "EROFS") < 11 || !strings.Contains(got, "read works") {
		t.Errorf("after remount,ro:\n%s", got)
	}
	remount(t, m.At, "rw")
	data = m.Overwrite("kept", data, []byte("again"), 10)
	remount(t, m.At, "noexec")
	m.Sh(`cp "$(type -P true)" prog`)
	if r := m.TrySh(`./prog`); r.Exit != 126 {
		t.Errorf("after remount,noexec: exit %d: %s", r.Exit, r.Stderr)
	}
	remount(t, m.At, "exec")
	m.Sh(`./prog`)
	m.Check("kept", data)
}

// A second mount with other options is refused, and says what to do.
func TestMountOverRunningMount(t *testing.T) {
	m := harness.New(t, harness.Config{})
	data := m.File("f", 1, 1000)
	r := harness.Mendfs(t, "mount", "--daemon", "--semantics", "strict", "--state", m.State, m.Backing, m.At)
	if r.Exit != 8 || !strings.Contains(r.Stderr, "already mounted") || !strings.Contains(r.Stderr, "; ") {
		t.Errorf("a second mount: exit %d, %q", r.Exit, r.Stderr)
	}
	m.Check("f", data)
}
