package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/mount/control"
)

// userEnv makes the test program mount over the directory that it names, ask
// the mount, and unmount: what an ordinary user can do.
const userEnv = "MENDFS_TEST_USER"

func userHelper(dir string) int {
	if err := mountAsUser(dir); err != nil {
		fmt.Println("failed:", err)
		return 1
	}
	fmt.Println("done")
	return 0
}

func mountAsUser(dir string) error {
	m, err := New(Options{Backing: dir + "/db", MountOpts: []string{"noexec"}, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	text, readErr := exec.Command("cat", dir+"/db/f").Output() // not by this process, which serves it
	var found, listErr = Find(dir + "/db")
	status, askErr := control.Dial(m.state.path).Status(context.Background())
	if err := errors.Join(readErr, listErr, askErr, m.Unmount(), m.Wait()); err != nil {
		return err
	}
	if string(text) != "text" || found.Backing != dir+"/db" || !status.OverMounted {
		return fmt.Errorf("read %q, found %+v, status %+v", text, found, status)
	}
	if want := filepath.Join(dir, "state", "mendfs"); filepath.Dir(m.state.path) != want {
		return fmt.Errorf("the state is in %s, want it in %s", m.state.path, want)
	}
	return nil
}

// runAsUser runs the helper as uid 65534 in a mount namespace of its own,
// where /dev/fuse has the given mode.
func runAsUser(t *testing.T, mode string) (dir, said string) {
	t.Helper()
	needRoot(t)
	for _, tool := range []string{"unshare", "setpriv", "fusermount3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: no %s (packages util-linux, fuse3)", tool)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "mendfs-user") // the test's own directory is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		os.Mkdir(dir+"/db", 0o700), os.WriteFile(dir+"/db/f", []byte("text"), 0o600), os.Mkdir(dir+"/run", 0o700),
		os.WriteFile(dir+"/program", program, 0o755), os.Chmod(dir, 0o755),
	)
	if err != nil {
		t.Fatal(err)
	}
	script := `set -e
mknod "$1/fuse" c 10 229; chmod "$2" "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
chown -R 65534:65534 "$1"; chown 0:0 "$1/fuse"; cd /
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$1/program"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", dir, mode)
	cmd.Env = append(os.Environ(), userEnv+"="+dir, "XDG_RUNTIME_DIR="+dir+"/run", "XDG_STATE_HOME="+dir+"/state", "HOME="+dir)
	out, err := cmd.CombinedOutput()
	t.Logf("%s%v", out, err)
	return dir, string(out)
}

func TestOrdinaryUserMountsThroughFusermount(t *testing.T) {
	_, said := runAsUser(t, "666")
	if !strings.Contains(said, "done") {
		t.Error("the user's mount did not work")
	}
}

func TestNoPermissionForFUSE(t *testing.T) {
	dir, said := runAsUser(t, "600")
	if !strings.Contains(said, "no permission for /dev/fuse") || !strings.Contains(said, "chmod 666") {
		t.Error("the reason was not said")
	}
	if _, err := os.Stat(dir + "/state"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a state directory was made: %v", err)
	}
}
