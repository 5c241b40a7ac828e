package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/mount/mounttest"
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

// runAsUser runs the helper as an ordinary user in a mount namespace of its own,
// where /dev/fuse has the given mode.
func runAsUser(t *testing.T, mode string) (home, said string) {
	t.Helper()
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("SKIP: no setpriv (package util-linux)")
	}
	u := mounttest.NewUser(t)
	if err := os.WriteFile(u.Mkdir("db")+"/f", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := strconv.Itoa(mounttest.UserID)
	cmd := u.Unshare(mode, "setpriv", "--reuid", id, "--regid", id, "--clear-groups", u.Program)
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), userEnv+"="+u.Home), u.Env()...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s%v", out, err)
	return u.Home, string(out)
}

func TestOrdinaryUserMountsThroughFusermount(t *testing.T) {
	_, said := runAsUser(t, "666")
	if !strings.Contains(said, "done") {
		t.Error("the user's mount did not work")
	}
}

func TestNoPermissionForFUSE(t *testing.T) {
	home, said := runAsUser(t, "600")
	if !strings.Contains(said, "no permission for /dev/fuse") || !strings.Contains(said, "chmod 666") {
		t.Error("the reason was not said")
	}
	if _, err := os.Stat(home + "/state"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a state directory was made: %v", err)
	}
}
