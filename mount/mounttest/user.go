package mounttest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// UserID is the user's id, and that of their group.
const UserID = 65534

// User is who the test acts as, besides root: somebody who may run the test program and
// has a home of their own, since the directories of a test are closed to others than the
// one who runs it.
type User struct {
	Home    string // belongs to the user; others than root can't enter it
	Program string // a copy of the test program, which everybody may run

	t   testing.TB
	dir string // root's, which everybody can enter
}

// NewUser makes a user until the end of the test. It needs root, and the test is
// skipped otherwise.
func NewUser(t testing.TB) *User {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: being another user needs root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "mendfs-user") // not below TMPDIR, which may be closed as well
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u := &User{Home: filepath.Join(dir, "home"), Program: filepath.Join(dir, "program"), t: t, dir: dir}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(u.Program, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	u.own(u.Home)
	u.Mkdir("run")
	return u
}

// Mkdir makes a directory in the user's home, and returns its path.
func (u *User) Mkdir(name string) string {
	u.t.Helper()
	dir := filepath.Join(u.Home, name)
	u.own(dir)
	return dir
}

// own makes a directory that belongs to the user.
func (u *User) own(dir string) {
	u.t.Helper()
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, UserID, UserID)); err != nil {
		u.t.Fatal(err)
	}
}

// Env is what says in the environment of the user's programs where they live.
func (u *User) Env() []string {
	return []string{"HOME=" + u.Home, "XDG_RUNTIME_DIR=" + u.Home + "/run", "XDG_STATE_HOME=" + u.Home + "/state"}
}

// RunAs has cmd, which is to run the test program, run the copy as somebody.
func (u *User) RunAs(cmd *exec.Cmd, id uint32) {
	cmd.Path, cmd.Dir = u.Program, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
}

// Unshare is a command that root runs in a mount namespace of its own, where
// /dev/fuse has the given mode; on most machines that is 666. Call it once.
func (u *User) Unshare(mode string, args ...string) *exec.Cmd {
	u.t.Helper()
	for _, tool := range []string{"unshare", "fusermount3"} {
		if _, err := exec.LookPath(tool); err != nil {
			u.t.Skipf("SKIP: no %s (packages util-linux, fuse3)", tool)
		}
	}
	const script = `set -e
mknod "$1/fuse" c 10 229; chmod "$2" "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
shift 2; exec "$@"`
	return exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", script, "sh", u.dir, mode}, args...)...)
}
