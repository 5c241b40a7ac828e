package security

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// stranger is a user who owns nothing.
const stranger = 65534

// as runs a shell script as a user without groups, in a directory.
func as(t *testing.T, uid int, dir, script string, args ...string) harness.Result {
	t.Helper()
	const noWayIn = 99
	id := fmt.Sprint(uid)
	r := harness.Run(t, "setpriv", append([]string{
		"--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "sh", "-c", fmt.Sprintf(`cd "$1" || exit %d; %s`, noWayIn, script), "sh", dir,
	}, args...)...)
	if r.Exit == noWayIn {
		t.Fatalf("user %d can't get into %s, where the test is to be: %s", uid, dir, r.Stderr)
	}
	return r
}

// TestIoctlsOfStrangers: through a server that passes everything on, any user
// shuts the backing filesystem down, or trims it.
func TestIoctlsOfStrangers(t *testing.T) {
	harness.Need(t, harness.Root, harness.Program("setpriv", "xfs_io", "fstrim"))
	disk := harness.NewDisk(t, "ext4", 32)
	m := harness.New(t, harness.Config{Backing: disk.At, Flags: []string{"--allow-other"}})
	m.Sh("mkdir his; echo text >his/f; chown -R " + fmt.Sprint(stranger) + " his; chmod 755 .")
	for _, script := range []string{
		"xfs_io -x -c shutdown his/f", "xfs_io -x -c 'shutdown -f' his/f", "xfs_io -r -x -c shutdown his", "xfs_io -r -x -c shutdown .",
		"fstrim .", "fstrim his",
	} {
		r := as(t, stranger, m.At, script)
		if r.Exit == 0 && !strings.Contains(r.Stdout+r.Stderr, "nappropriate ioctl") && !strings.Contains(r.Stdout+r.Stderr, "not permitted") {
			t.Errorf("%s: %+v", script, r)
		}
		// Whoever asks: root's ioctls would run with the same rights.
		harness.Run(t, "sh", "-c", `cd "$1"; `+script, "sh", m.At)
	}
	m.Sh("echo more >>his/f; sync his/f; touch his/g")
	if err := os.WriteFile(disk.At+"/still", []byte("alive"), 0o600); err != nil {
		t.Errorf("the backing filesystem: %v", err)
	}
}

// exchange swaps two names of a directory until it is stopped.
func exchange(t *testing.T, dir, a, b string) (stop func()) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	ended := make(chan error, 1)
	go func() { // until stop
		var err error
		for err == nil && !done.Load() {
			err = unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE)
		}
		ended <- err
	}()
	return func() {
		t.Helper()
		done.Store(true)
		if err := <-ended; err != nil {
			t.Errorf("exchanging %s and %s: %v", a, b, err)
		}
		_ = unix.Close(fd) // O_PATH
	}
}

// operations is how many are tried in each race: servers that work by path go
// wrong in 6 of 100. MENDFS_OPERATIONS sets another number.
func operations(t *testing.T) int {
	t.Helper()
	text, set := os.LookupEnv("MENDFS_OPERATIONS")
	if !set {
		return 6_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRenamesHitNoOtherFile changes two open files while their directories
// change places.
func TestRenamesHitNoOtherFile(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.New(t, harness.Config{})
	m.Sh("mkdir a b; echo >a/f; echo >b/f")
	type file struct{ mark, through, below string }
	files := []file{{mark: "a"}, {mark: "b"}}
	for i := range files {
		f := &files[i]
		f.through, f.below = openPath(t, m.Path(f.mark+"/f")), openPath(t, m.Below(f.mark+"/f"))
	}
	stop := exchange(t, m.At, "a", "b")
	wrong := 0
	for i := range operations(t) / 2 { // two each
		for k, f := range files {
			size := int64(2*i + k) // odd for one, even for the other
			if err := unix.Setxattr(f.through, "user.mark", []byte(f.mark), 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Truncate(f.through, size); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			mark := make([]byte, 8)
			n, err := unix.Getxattr(f.below, "user.mark", mark)
			if err == nil {
				err = unix.Stat(f.below, &st)
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(mark[:n]) != f.mark || st.Size != size {
				wrong++
			}
		}
	}
	stop()
	if wrong > 0 {
		t.Errorf("%d operations hit another file", wrong)
	}
}

// openPath names an open file by its descriptor, so that it keeps its name.
func openPath(t *testing.T, path string) string {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) }) // O_PATH
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

// TestSymlinkSwapsLeadNowhere puts a link that leads out of the backing in
// place of a directory, below the mount and through it, while files in that
// directory are made, changed and removed.
func TestSymlinkSwapsLeadNowhere(t *testing.T) {
	harness.Need(t, harness.Root)
	for _, through := range []bool{false, true} {
		t.Run(fmt.Sprintf("through the mount %v", through), func(t *testing.T) {
			m := harness.New(t, harness.Config{})
			out := harness.Dir(t)
			if err := os.WriteFile(out+"/f", []byte("outside"), 0o640); err != nil {
				t.Fatal(err)
			}
			m.Sh(`mkdir d; echo inside >d/f; ln -s "$1" l`, out)
			before := outside(t, out)
			at := m.Backing
			if through {
				at = m.At
			}
			stop := exchange(t, at, "d", "l")
			done, tries := 0, 0
			for ; done < operations(t)/4 && tries < 10*operations(t); tries++ {
				done += changeIn(t, m.At, tries)
			}
			stop()
			if done < 10 {
				t.Errorf("%d changes were made in %d tries", done, tries)
			}
			if after := outside(t, out); after != before {
				t.Errorf("outside was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// changeIn changes what is in the directory d of the mount, if it is one just
// now, and counts what worked. Nothing that fails is wrong: the names change.
func changeIn(t *testing.T, at string, i int) (done int) {
	t.Helper()
	dir, err := unix.Open(at+"/d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(dir)
	name := fmt.Sprint("n", i)
	count := func(err error) {
		if err == nil {
			done++
		}
	}
	count(unix.Mkdirat(dir, name, 0o700))
	count(unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
	count(unix.Fchmodat(dir, "f", uint32(0o600+i%8), 0))
	count(unix.Fchownat(dir, "f", i%8, i%8, unix.AT_SYMLINK_NOFOLLOW))
	fd, err := unix.Openat(dir, "f", unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return done
	}
	defer unix.Close(fd)
	count(unix.Fsetxattr(fd, "user.x", []byte(name), 0))
	count(unix.Ftruncate(fd, int64(i%4096)))
	_, err = unix.Pwrite(fd, []byte(name), 0)
	count(err)
	return done
}

// outside is all that can be seen of a directory.
func outside(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cd "$1"; ls -A; stat -c '%n %a %u %g %s %y %z' . f; cat f; getfattr -d -m - f`, "sh", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestMountsBelowTheBackingAreHidden, and what is written there goes to the
// covered directory.
func TestMountsBelowTheBackingAreHidden(t *testing.T) {
	harness.Need(t, harness.Root)
	backing := harness.Dir(t)
	sub := filepath.Join(backing, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("other", sub, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(sub, 0); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(sub + "/new"); err != nil || string(text) != "new\n" {
			t.Errorf("in the covered directory: %q, %v", text, err)
		}
	})
	if err := os.WriteFile(sub+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := harness.New(t, harness.Config{Backing: backing})
	if list := m.Sh("ls -A sub; ls -A sub/../sub/.."); strings.TrimSpace(list) != "sub" {
		t.Errorf("shown is %q", list)
	}
	m.Sh("echo new >sub/new")
	if _, err := os.Stat(sub + "/new"); err == nil {
		t.Error("it was written into the other filesystem")
	}
	m.Stop()
}

// TestBindMountOfASubdirectory: dot-dot ends at the bind mount.
func TestBindMountOfASubdirectory(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.New(t, harness.Config{})
	m.Sh("mkdir -p a/b; echo secret >f; echo text >a/b/g")
	at := filepath.Join(harness.Dir(t), "bind")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(m.Path("a"), at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	if r := as(t, 0, at, "cat b/g b/../../f ../f"); strings.Contains(r.Stdout, "secret") || !strings.Contains(r.Stdout, "text") {
		t.Errorf("%+v", r)
	}
	m.Sh("mv a/b c") // out of the bind mount, while nobody is in it
	if r := as(t, 0, at, "ls -A; echo x >new"); r.Exit != 0 || r.Stdout != "" {
		t.Errorf("%+v", r)
	}
	m.Sh("test -e a/new")
}
