package cli

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mendfs/mendfs/tests/harness"
)

// helpers is a mount namespace whose /sbin has the mount helpers of mendfs and
// nothing else: mount(8) looks nowhere else for them.
type helpers struct {
	t       *testing.T
	pid     string // of a process in it
	dir     string
	b, m, s string // as place makes them
}

// newHelpers makes the namespace; setup is a shell script that is run in it,
// with the directory of the test as $1.
func newHelpers(t *testing.T, setup string) *helpers {
	t.Helper()
	harness.Need(t, harness.Root, harness.FUSE, harness.Program("unshare", "nsenter", "mount", "umount"))
	dir, b, m, s := place(t)
	script := `set -e
mount -t tmpfs -o mode=755 tmpfs /sbin
ln -s "$MENDFS_BIN" /sbin/mount.mendfs
ln -s "$MENDFS_BIN" /sbin/mount.fuse.mendfs
` + setup + `
echo "$$"
read -r end || exit 0`
	anchor := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", dir)
	anchor.Stderr = os.Stderr
	stdin, err := anchor.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := anchor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := anchor.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(stdout).ReadString('\n')
	h := &helpers{t: t, pid: strings.TrimSpace(line), dir: dir, b: b, m: m, s: s}
	t.Cleanup(func() {
		if h.pid != "" {
			h.clear()
		}
		_ = stdin.Close() // the process ends; Wait tells
		if err := anchor.Wait(); err != nil {
			t.Errorf("the namespace: %v", err)
		}
	})
	if readErr != nil {
		t.Fatalf("the namespace was not made: %v", readErr)
	}
	return h
}

// clear takes away what a test has left mounted: only one that failed leaves
// something.
func (h *helpers) clear() {
	for _, at := range []string{h.m, h.b} {
		for strings.HasPrefix(h.mounted(at), "fuse.mendfs ") {
			if !h.t.Failed() {
				h.t.Errorf("%s is still mounted", at)
			}
			if r := h.run("umount", "--lazy", at); r.Exit != 0 {
				h.t.Fatalf("umount %s: %s", at, r.Stderr)
			}
		}
	}
}

// run runs a program in the namespace.
func (h *helpers) run(args ...string) harness.Result {
	h.t.Helper()
	// Options that mount(8) remembers for itself must not go to the machine's own list.
	own := []string{"--mount", "--target", h.pid, "env", "LIBMOUNT_UTAB=" + filepath.Join(h.dir, "utab")}
	return harness.Run(h.t, "nsenter", append(own, args...)...)
}

// ok runs a program that must succeed, quietly.
func (h *helpers) ok(args ...string) {
	h.t.Helper()
	if r := h.run(args...); r.Exit != 0 || r.Stdout != "" {
		h.t.Fatalf("%q: exit %d: %s%s", args, r.Exit, r.Stdout, r.Stderr)
	}
}

// refuses runs a program that must end with the code, and say why.
func (h *helpers) refuses(code int, says string, args ...string) {
	h.t.Helper()
	if r := h.run(args...); r.Exit != code || !strings.Contains(r.Stderr, says) {
		h.t.Errorf("%q: exit %d, %q, want %d and %q", args, r.Exit, r.Stderr, code, says)
	}
}

// mounted is "TYPE SOURCE OPTIONS" of the topmost mount at a directory, with
// the options of the mount and the filesystem; "" if there is none.
func (h *helpers) mounted(at string) string {
	h.t.Helper()
	text, err := os.ReadFile("/proc/" + h.pid + "/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	found := ""
	for line := range strings.Lines(string(text)) {
		left, right, _ := strings.Cut(line, " - ")
		if l, r := strings.Fields(left), strings.Fields(right); l[4] == at {
			found = r[0] + " " + r[1] + " " + l[5] + "," + r[2]
		}
	}
	return found
}

// has checks the options of what is mounted at a directory: those without a !
// are there, the others not.
func (h *helpers) has(at string, options ...string) {
	h.t.Helper()
	fields := strings.Fields(h.mounted(at))
	if len(fields) != 3 || fields[0] != "fuse.mendfs" {
		h.t.Fatalf("at %s is mounted: %q", at, fields)
	}
	for _, o := range options {
		word, not := strings.CutPrefix(o, "!")
		if slices.Contains(strings.Split(fields[2], ","), word) == not {
			h.t.Errorf("want %s of %q", o, fields)
		}
	}
}

// gone checks that nothing is mounted, and waits until the daemon has ended.
func (h *helpers) gone(at string) {
	h.t.Helper()
	if m := h.mounted(at); m != "" {
		h.t.Fatalf("still mounted at %s: %s", at, m)
	}
	for range 500 {
		if strings.Contains(h.run(os.Getenv("MENDFS_BIN"), "status", "--json", "--state", h.s).Stdout, `"running":false`) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.t.Errorf("the daemon for %s lives on", at)
}

// fstab writes a table of one line, and returns its path.
func (h *helpers) fstab(fields ...string) string {
	h.t.Helper()
	path := filepath.Join(h.dir, "fstab")
	harness.WriteFile(h.t, path, []byte(strings.Join(fields, " ")+"\n"))
	return path
}

func TestMountByType(t *testing.T) {
	h := newHelpers(t, "")
	for _, kind := range []string{"mendfs", "fuse.mendfs"} {
		h.ok("mount", "-t", kind, "-o", "state="+h.s+",allow-other,nosuid,nofail,x-systemd.automount", h.b, h.m)
		h.has(h.m, "rw", "nosuid", "!nodev", "allow_other")
		h.ok("cmp", h.b+"/file", h.m+"/file")
		if cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.servedBy(h.m))); err != nil || !strings.Contains(string(cmd), "mount."+kind) {
			t.Errorf("served by %q, %v", cmd, err)
		}
		h.refuses(32, "already mounted", "mount", "-t", kind, "-o", "state="+h.s+"2", h.b, mkdir(t, h.dir, "other"))
		h.ok("umount", h.m)
		h.gone(h.m)
	}
	h.refuses(1, `"frob"`, "mount", "-t", "mendfs", "-o", "ro,frob,state="+h.s, h.b, h.m)
	h.refuses(1, "does not exist", "mount", "-t", "mendfs", "-o", "state="+h.s, h.b+"/nowhere", h.m)
	h.refuses(1, "odd", "mount", "-t", "mendfs", "-o", "semantics=odd", h.b, h.m)
	h.ok("mount", "-f", "-t", "mendfs", "-o", "ro,state="+h.s, h.b, h.m)
	if m := h.mounted(h.m); m != "" {
		t.Errorf("mount -f has mounted %s", m)
	}
	h.refuses(1, `"frob"`, "mount", "-f", "-t", "mendfs", "-o", "frob", h.b, h.m)
	if r := h.run("mount", "-v", "-s", "-n", "-t", "mendfs", "-o", "frob,verify_writes,ro,state="+h.s, h.b, h.m); r.Exit != 0 || !strings.Contains(r.Stdout, "ready") {
		t.Errorf("mount -v -s: %+v", r)
	}
	h.has(h.m, "ro")
	h.ok("umount", h.m)
	h.gone(h.m)
}

// servedBy is the process that serves the mount.
func (h *helpers) servedBy(at string) int {
	h.t.Helper()
	r := h.run(os.Getenv("MENDFS_BIN"), "status", "--json", at)
	_, text, _ := strings.Cut(r.Stdout, `"pid":`)
	pid := 0
	if _, err := fmt.Sscanf(text, "%d", &pid); err != nil {
		h.t.Fatalf("status: %+v", r)
	}
	return pid
}

// SPEC == DIR mounts over it; mount -a does it once.
func TestFstab(t *testing.T) {
	h := newHelpers(t, "")
	tab := h.fstab(h.b, h.b, "mendfs", "allow_other,state="+h.s+",nofail,_netdev,x-systemd.requires-mounts-for=/var", "0", "0")
	h.ok("mount", "-T", tab, "-a")
	h.has(h.b, "rw", "allow_other")
	h.ok("mount", "-T", tab, "-a")
	h.ok("test", "-s", h.b+"/file") // it answers
	h.ok("umount", h.b)
	h.gone(h.b)
	h.ok("mount", "-T", tab, h.b)
	h.ok("mount", "-T", tab, "-o", "remount,ro", h.b)
	h.has(h.b, "ro")

	// A dead one is replaced.
	if err := syscall.Kill(h.servedBy(h.b), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if h.run("stat", "--file-system", h.b).Exit != 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.refuses(32, "is dead", "mount", "-o", "remount,rw", h.b)
	h.ok("mount", "-T", tab, h.b)
	h.has(h.b, "rw")
	h.ok("test", "-s", h.b+"/file")
	h.ok("umount", h.b)
	h.gone(h.b)
}

func TestRemount(t *testing.T) {
	h := newHelpers(t, `mount -t tmpfs -o noexec tmpfs "$1/b"`) // noexec is the backing's own
	log := filepath.Join(h.dir, "log")
	h.ok("mount", "-t", "mendfs", "-o", "event_log="+log+",state="+h.s, h.b, h.m)
	h.has(h.m, "rw", "noexec")
	h.ok("touch", h.m+"/a")
	h.ok("mount", "-o", "remount,ro", h.m)
	h.has(h.m, "ro", "noexec", "!nosuid")
	h.refuses(1, "Read-only file system", "touch", h.m+"/b")
	h.ok("mount", "-o", "remount,rw,nosuid,nodev", h.m)
	h.has(h.m, "rw", "noexec", "nosuid", "nodev", "relatime")
	h.ok("touch", h.m+"/b")
	h.ok("mount", "-f", "-o", "remount,ro", h.m)
	h.has(h.m, "rw")

	// What the table says is in force, or is refused; what it does not say goes.
	inForce := "semantics=recover,protect=full,verify_writes=false,repair=on-write,breaker=1024,event_log=" + log + ",state=" + h.s
	tab := h.fstab(h.b, h.m, "mendfs", inForce, "0", "0")
	h.ok("mount", "-T", tab, "-o", "remount,ro", h.m)
	h.has(h.m, "ro", "noexec", "!nosuid", "!nodev", "relatime")
	h.ok("mount", "-T", tab, "-o", "remount,rw", h.m)
	h.has(h.m, "rw")
	for _, word := range []string{
		"state=" + h.dir, "semantics=strict", "protect=known", "simulate=dax", "verify_writes", "breaker=7", "event_log=" + h.s, "allow_other", "noatime", "fsname=other",
	} {
		h.refuses(32, "umount it, and mount it again", "mount", "-o", "remount,ro,"+word, h.m)
		h.has(h.m, "rw", "!noatime", "!allow_other")
	}
	h.refuses(1, `"frob"`, "mount", "-o", "remount,frob", h.m)
	h.ok("umount", h.m)
	h.gone(h.m)
	h.ok("mount", "-t", "mendfs", "-o", "ro,noatime,event_log="+log+",state="+h.s, h.b, h.m)
	h.refuses(32, "was mounted read-only", "mount", "-o", "remount,rw", h.m)
	h.ok("mount", "-o", "remount,ro,nosuid", h.m)
	h.has(h.m, "ro", "nosuid", "noatime")
	h.ok("umount", h.m)
	h.gone(h.m)
}

// mount -N has the helper change to another namespace.
func TestMountInANamespace(t *testing.T) {
	h := newHelpers(t, "")
	other := newHelpers(t, "")
	h.ok("mount", "-N", other.pid, "-t", "mendfs", "-o", "state="+h.s, h.b, h.m)
	if m := h.mounted(h.m); m != "" {
		t.Errorf("mounted here, too: %s", m)
	}
	if m := other.mounted(h.m); !strings.HasPrefix(m, "fuse.mendfs") {
		t.Fatalf("mounted there is %q", m)
	}
	other.ok("umount", h.m)
	h.gone(h.m)
}

// An ordinary user may mount what fstab has for him, with what mount(8) leaves
// of the environment.
func TestHelperForUsers(t *testing.T) {
	harness.Need(t, harness.Program("setpriv", "fusermount3"))
	h := newHelpers(t, `mkdir "$1/dev" "$1/run"
mount -t tmpfs tmpfs "$1/dev"
mknod -m 666 "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
echo "$1/b $1/m mendfs user,noauto,state=$1/u/s 0 0" >"$1/fstab"
mount --bind "$1/fstab" /etc/fstab
cp "$MENDFS_BIN" "$1/mendfs"
ln -sf "$1/mendfs" /sbin/mount.mendfs
ln -sf "$1/mendfs" /sbin/mount.fuse.mendfs
mkdir "$1/u"
chown -R 65534:65534 "$1/b" "$1/m" "$1/u" "$1/run"`)
	for _, open := range []string{h.dir, filepath.Dir(h.dir)} {
		makeEnterable(t, open)
	}
	h.s = filepath.Join(h.dir, "u/s")
	user := []string{"env", "XDG_RUNTIME_DIR=" + h.dir + "/run", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	if r := h.run(append(user, "mount", h.m)...); r.Exit != 0 {
		t.Fatalf("mount: %+v", r)
	}
	h.has(h.m, "nosuid", "nodev", "noexec", "user_id=65534")
	if r := h.run(append(user, "cat", h.m+"/file")...); r.Exit != 0 || r.Stdout != string(harness.Pattern(1, 3*page)) {
		t.Errorf("cat: exit %d, %d bytes, %s", r.Exit, len(r.Stdout), r.Stderr)
	}
	h.refuses(1, "remount as root", append(user, "mount", "-o", "remount,ro", h.m)...)
	h.ok(append(user, "umount", h.m)...)
	if m := h.mounted(h.m); m != "" {
		t.Errorf("still mounted: %s", m)
	}
}
