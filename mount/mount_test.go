package mount

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

func TestOverMountAndBack(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/old", "before")
	o := b.options()
	o.Mountpoint = ""
	m := b.mount(o)
	if want := "mendfs: " + b.backing + " ready (over-mounted, semantics recover, state " + b.state + ")"; m.Ready() != want {
		t.Errorf("ready line %q, want %q", m.Ready(), want)
	}
	if got := b.read(b.backing + "/old"); got != "before" {
		t.Errorf("through the mount: %q", got)
	}
	b.write(b.backing+"/new", "during")
	p, err := lookup(b.backing)
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	if p.mount.Type != FSType || p.mount.Source != b.backing {
		t.Errorf("mounted is %+v", p.mount)
	}
	b.end(m)
	if got := b.read(b.backing+"/old") + b.read(b.backing+"/new"); got != "beforeduring" {
		t.Errorf("after unmounting: %q", got)
	}
	if all, err := List(); err != nil || len(all) > 0 && all[0].Backing == b.backing {
		t.Errorf("still listed: %v, %v", all, err)
	}
	if _, err := os.Stat(filepath.Join(b.state, control.Socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control socket after the end: %v", err)
	}
}

func TestMountBesideBacking(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	m := b.mount(b.options())
	if got := b.read(b.point + "/f"); got != "text" {
		t.Errorf("read %q", got)
	}
	if !strings.Contains(b.stderr.String(), "new state directory "+b.state) {
		t.Errorf("said only %q", b.stderr.String())
	}
	b.end(m)
	b.stderr = output{}
	b.end(b.mount(b.options()))
	if strings.Contains(b.stderr.String(), "new state directory") {
		t.Errorf("announced again: %q", b.stderr.String())
	}
}

func TestUnmountFromOutsideEndsWait(t *testing.T) {
	b := newBench(t)
	m := b.mount(b.options())
	done := make(chan error, 1)
	go func() { done <- Unmount(b.point) }() // waits for what b.wait does
	b.wait(m)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(m.entry.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still listed: %v", err)
	}
}

func TestAbortedConnectionIsUnmounted(t *testing.T) {
	b := newBench(t)
	m := b.mount(b.options())
	minor := m.entry.Dev[strings.Index(m.entry.Dev, ":")+1:]
	connections := filepath.Join(b.dir, "fusectl")
	b.mkdir(connections)
	if err := unix.Mount("fusectl", connections, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(connections, 0); err != nil {
			t.Error(err)
		}
	}()
	abort := filepath.Join(connections, minor, "abort")
	if err := os.WriteFile(abort, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.wait(m) // sweep reports a mount that is left
}

func TestUnmountOfABusyMountDetaches(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	m := b.mount(b.options())
	f, err := os.Open(b.point + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var busy *Error
	if err := Unmount(b.point); !errors.Is(err, unix.EBUSY) || !errors.As(err, &busy) || busy.Exit != control.ExitOperational {
		t.Errorf("the verb umount: %v", err)
	}
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.stderr.String(), b.point+" is in use") {
		t.Errorf("said only %q", b.stderr.String())
	}
	text := make([]byte, 4)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "text" {
		t.Errorf("the open file: %q, %v", text, err)
	}
	b.refused(b.options(), control.ExitOperational, "already mounted")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.wait(m)
}

// TestUnmountUncoversNothingInUse: who opens a file while a mount over its backing
// directory waits for its last user is protected like all others.
func TestUnmountUncoversNothingInUse(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	o := b.options()
	o.Mountpoint, b.point = "", b.backing
	m := b.mount(o)
	user := exec.Command("sleep", "1000")
	user.Dir = b.backing
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	unmounted := make(chan error, 1)
	go func() { unmounted <- m.Unmount() }() // ends when the user has
	for !strings.Contains(b.stderr.String(), "is served until its last user is gone") {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(2 * busyInterval)
	if at, err := lookup(b.backing); err != nil || at.mount.Dev != m.entry.Dev {
		t.Errorf("the mount does not cover its backing directory any more: %v", err)
	} else {
		at.close()
	}
	if err := user.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = user.Wait() // says that it was killed
	if err := <-unmounted; err != nil {
		t.Error(err)
	}
	b.wait(m)
}

func TestDeadMountIsReplaced(t *testing.T) {
	for name, over := range map[string]bool{"over-mounted": true, "beside": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.write(b.backing+"/f", "text")
			o := b.options()
			if over {
				o.Mountpoint, b.point = "", b.backing
			}
			helper := startHelper(t, o)
			if err := helper.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = helper.Wait() // says that it was killed
			if _, err := os.ReadFile(b.point + "/f"); !errors.Is(err, unix.ENOTCONN) {
				t.Fatalf("the dead mount answers %v", err)
			}
			if _, err := Find(b.point); err == nil || !strings.Contains(err.Error(), "is dead") {
				t.Errorf("Find: %v", err)
			}
			m := b.mount(o)
			if !strings.Contains(b.stderr.String(), "detached the dead mount at "+b.point) {
				t.Errorf("said only %q", b.stderr.String())
			}
			if got := b.read(b.point + "/f"); got != "text" {
				t.Errorf("read %q", got)
			}
			b.end(m)
		})
	}
}

func TestUmountTakesAwayADeadMount(t *testing.T) {
	b := newBench(t)
	helper := startHelper(t, b.options())
	if err := helper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = helper.Wait() // says that it was killed
	if err := Unmount(b.point); err != nil {
		t.Error(err)
	}
}

func TestUmountRefusesWhatIsNotOurs(t *testing.T) {
	b := newBench(t)
	b.write(b.backing+"/f", "text")
	m := b.mount(b.options())
	for path, text := range map[string]string{
		b.dir + "/none":  "does not exist",
		b.backing:        "nothing of mendfs is mounted",
		"/proc":          "nothing of mendfs is mounted",
		b.point + "/f":   "is not a mountpoint, it lies in the mendfs mount at " + b.point,
		b.point + "/f/x": "is not a directory",
	} {
		var e *Error
		if err := Unmount(path); !errors.As(err, &e) || e.Exit != control.ExitUsage || !strings.Contains(e.Msg, text) {
			t.Errorf("%s: %v", path, err)
		}
	}

	if err := unix.Mount("tmpfs", b.point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); err == nil || !strings.Contains(err.Error(), "is mounted over "+b.point) {
		t.Errorf("with another mount on top: %v", err)
	}
	if err := unix.Unmount(b.point, 0); err != nil {
		t.Fatal(err)
	}
	b.end(m)
}

func TestHelperEndsAtSIGTERM(t *testing.T) {
	b := newBench(t)
	helper := startHelper(t, b.options())
	if err := helper.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := helper.Wait(); err != nil {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	b := newBench(t)
	b.mkdir(b.backing + "/a/b")
	b.write(b.backing+"/a/b/f", "text")
	b.mount(b.options())
	bind := b.dir + "/bind"
	b.mkdir(bind)
	if err := unix.Mount(b.point+"/a", bind, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(bind, 0); err != nil {
			t.Error(err)
		}
	}()
	for path, rel := range map[string]string{b.point: ".", b.point + "/a/b/f": "a/b/f", bind: "a", bind + "/b/f": "a/b/f"} {
		r, err := Find(path)
		if err != nil {
			t.Fatal(err)
		}
		if r.Rel != rel || r.Mountpoint != b.point || r.Backing != b.backing || r.State != b.state || r.Pid != os.Getpid() {
			t.Errorf("%s is %+v", path, *r)
		}
	}
	for path, text := range map[string]string{b.backing: "does not lie in a mendfs mount", b.point + "/none": "does not exist"} {
		var e *Error
		if _, err := Find(path); !errors.As(err, &e) || e.Exit != control.ExitUsage || !strings.Contains(e.Msg, text) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	b := newBench(t)
	o := b.options()
	o.MountOpts = []string{"ro", "noexec"}
	m := b.mount(o)
	if err := os.WriteFile(b.point+"/f", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a file was made: %v", err)
	}
	p, err := lookup(b.point)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	has := func(o string) bool { return slices.Contains(p.mount.Options, o) }
	if !has("ro") || !has("noexec") || has("nodev") {
		t.Errorf("options %v", p.mount.Options)
	}
	if !strings.Contains(m.Ready(), "read-only") {
		t.Errorf("ready line %q", m.Ready())
	}
}

func TestReadOnlyBackingMakesTheMountReadOnly(t *testing.T) {
	b := newBench(t)
	if err := unix.Mount(b.backing, b.backing, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(b.backing, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mount("", b.backing, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID, ""); err != nil {
		t.Fatal(err)
	}
	m := b.mount(b.options())
	p, err := lookup(b.point)
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	if !p.isMountRoot() || !slices.Contains(p.mount.Options, "ro") || !slices.Contains(p.mount.Options, "nosuid") {
		t.Errorf("mounted %+v", p.mount)
	}
	if !strings.Contains(b.stderr.String(), b.backing+" is read-only") || !strings.Contains(m.Ready(), "read-only") {
		t.Errorf("said %q and %q", b.stderr.String(), m.Ready())
	}
	b.end(m)
}

func TestStatusOfARunningMountAndOfItsState(t *testing.T) {
	b := newBench(t)
	m := b.mount(b.options())
	ctx := context.Background()
	running, err := control.Dial(b.state).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !running.Running || running.Mountpoint != b.point || running.Pid != os.Getpid() || running.Semantics != "recover" {
		t.Errorf("running: %+v", running)
	}
	if _, err := OpenState(b.state); !errors.Is(err, ErrRunning) {
		t.Errorf("OpenState while it runs: %v", err)
	}
	b.end(m)
	if _, err := control.Dial(b.state).Status(ctx); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("Dial after the end: %v", err)
	}
	s, err := OpenState(b.state)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stopped, err := s.Status(ctx)
	if err != nil || stopped.Running || stopped.Backing != b.backing || stopped.FS != running.FS {
		t.Errorf("stopped: %+v, %v", stopped, err)
	}
	if err := s.Events(ctx, control.EventQuery{Follow: true}, nil); err == nil {
		t.Error("events of no mount can be followed")
	}
}
