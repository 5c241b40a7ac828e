package mount

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/mounttest"
)

// stoppedMount is a mount whose server is stopped: its connection is there, and
// nobody answers.
func stoppedMount(t *testing.T, over bool) (*bench, *exec.Cmd) {
	t.Helper()
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	o := b.options()
	if over {
		o.Mountpoint, b.point = "", b.backing
	}
	server := startHelper(t, o)
	mounttest.Stop(t, server.Process.Pid)
	t.Cleanup(func() {
		kill(t, server)
		_ = unix.Unmount(b.point, unix.MNT_DETACH) // the test has failed if it is not there
	})
	return b, server
}

// device is the device number of the mount at the bench's point.
func (b *bench) device() string {
	b.t.Helper()
	p, err := lookup(b.point)
	if err != nil {
		b.t.Fatal(err)
	}
	defer p.close()
	if p.mount.Type != FSType || !p.isMountRoot() {
		b.t.Fatalf("%s is not mounted: %+v", b.point, p.mount)
	}
	return p.mount.Dev
}

// aborted is that programs get ENOTCONN there, and that the mount has stayed.
func (b *bench) aborted(dev string) {
	b.t.Helper()
	if _, err := os.ReadDir(b.point); !errors.Is(err, unix.ENOTCONN) {
		b.t.Errorf("reading %s: %v, want ENOTCONN", b.point, err)
	}
	if got := b.device(); got != dev {
		b.t.Errorf("%s is there, want the mount %s", got, dev)
	}
}

func TestForceUncoversNothing(t *testing.T) {
	for _, over := range []bool{true, false} {
		b, _ := stoppedMount(t, over)
		dev := b.device()
		if err := force(b.point, dev); err != nil {
			t.Fatal(err)
		}
		b.aborted(dev)
		if err := force(b.point, dev); err != nil {
			t.Errorf("again: %v", err)
		}
		b.aborted(dev)
	}
}

// TestForceLeavesOthersAlone: what is mounted over it, and what is not it.
func TestForceLeavesOthersAlone(t *testing.T) {
	b, _ := stoppedMount(t, false)
	dev := b.device()
	if err := force(b.point, "0:1"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("another device: %v", err)
	}
	// The root of a mount is found without asking its server.
	if err := unix.Mount("x", b.point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	err := force(b.point, dev)
	p, err2 := lookup(b.point)
	if err2 != nil {
		t.Fatal(err2)
	}
	p.close()
	if !errors.Is(err, unix.EINVAL) || p.mount.Type != "tmpfs" {
		t.Errorf("covered: %v, and %s is there", err, p.mount.Type)
	}
	if err := unix.Unmount(b.point, 0); err != nil {
		t.Fatal(err)
	}
	if b.device() != dev {
		t.Error("the mount is gone")
	}
}

// TestAbortIsOfOneConnection: an abort made ready for a connection that has
// ended does nothing to a later one, though that has the same device number.
func TestAbortIsOfOneConnection(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	m := b.mount(b.options())
	dev := m.entry.Dev
	abort, err := aborter(b.point, dev)
	if err != nil {
		t.Fatal(err)
	}
	b.end(m)
	m = b.mount(b.options())
	defer b.end(m)
	if m.entry.Dev != dev {
		t.Logf("the device number is %s now, and was %s", m.entry.Dev, dev)
	}
	if err := abort(); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("cat", b.point+"/f").Output(); err != nil || string(out) != "text" {
		t.Errorf("read %q, %v", out, err)
	}
}

func TestAbortLeavesTheMount(t *testing.T) {
	for _, over := range []bool{true, false} {
		b, _ := stoppedMount(t, over)
		dev := b.device()
		abort, err := aborter(b.point, dev)
		if err != nil {
			t.Fatal(err)
		}
		if err := abort(); err != nil {
			t.Fatal(err)
		}
		b.aborted(dev)
	}
}
