package resources

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// What programs get when something is short is what they get on the backing
// filesystem: the same script runs on both, and has to say the same.

// errnos is what a Python script says that is run in a directory: it has errno(call),
// which prints the name of the error that call raises.
func errnos(t *testing.T, dir, script string) string {
	t.Helper()
	const prelude = `
import errno as e, os, resource, shutil, signal, subprocess, sys
def errno(what, call):
    try:
        call()
        print(what, "works")
    except OSError as x:
        print(what, e.errorcode[x.errno])
def fill(fd, n=65536):
    while True:
        if os.write(fd, b"x" * n) == 0: raise Exception("wrote nothing")
def new(name, flags=0): return os.open(name, os.O_CREAT | os.O_RDWR | flags, 0o644)
def done(*names):
    os.closerange(3, 1000)
    for name in names:
        if os.path.exists(name): os.unlink(name)
def many(make):
    for i in range(100000): make(f"many/{i}")
`
	cmd := exec.Command("python3", "-c", prelude+script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in %s: %v: %s", dir, err, out)
	}
	return string(out)
}

// same runs the script on the backing filesystem and on the mount, and checks
// that a file that was there before is unharmed. The backing is reached only when the
// mount's files are closed, and the other way round.
func same(t *testing.T, m *harness.Mount, script string) {
	t.Helper()
	bare := errnos(t, m.Backing, script)
	if got := errnos(t, m.At, script); got != bare {
		t.Errorf("in the mount:\n%s\non the backing filesystem:\n%s", got, bare)
	} else {
		t.Log(bare)
	}
}

const keepSize = 300_000

// onDisk mounts a filesystem that has a file to be kept, and gives its content.
func onDisk(t *testing.T, d *harness.Disk, flags ...string) (*harness.Mount, []byte) {
	t.Helper()
	kept := harness.Pattern(7, keepSize)
	harness.WriteFile(t, filepath.Join(d.At, "kept"), kept)
	return harness.New(t, harness.Config{Backing: d.At, Flags: flags}), kept
}

func TestNoSpace(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			size, flags := int64(32), []string{"-N", "300", "-m", "0"}
			if kind == "xfs" {
				size, flags = 300, nil
			}
			m, kept := onDisk(t, harness.NewDisk(t, kind, size, flags...))
			same(t, m, `
f = new("full")
errno("write", lambda: fill(f))
errno("write again", lambda: os.write(f, b"x" * 200000))
errno("append", lambda: fill(new("full", os.O_APPEND)))
errno("new file", lambda: fill(new("other")))
errno("allocate", lambda: os.posix_fallocate(new("allocated"), 0, 400 << 20))
errno("copy", lambda: shutil.copyfile("full", "copied"))
errno("overwrite", lambda: os.pwrite(f, b"y" * 100000, 0))
errno("fsync", lambda: os.fsync(f))
done("full", "other", "allocated", "copied")
errno("afterwards", lambda: os.write(new("full"), b"x" * 100000))
done("full")
os.mkdir("many")
`+map[string]string{"ext4": `
errno("files", lambda: many(lambda n: os.close(new(n))))
errno("directory", lambda: os.mkdir("many/d"))
errno("symlink", lambda: os.symlink("x", "many/s"))
errno("fifo", lambda: os.mkfifo("many/p"))
errno("link", lambda: os.link("kept", "many/l"))
`, "xfs": ""}[kind]+`
shutil.rmtree("many")
`)
			m.Check("kept", kept)
		})
	}
}

// btrfs has quotas of its own, which every kernel with btrfs has.
func TestNoQuota(t *testing.T) {
	harness.Need(t, harness.Program("python3", "btrfs"))
	d := harness.NewDisk(t, "btrfs", 256)
	m, kept := onDisk(t, d)
	for _, args := range [][]string{{"quota", "enable", d.At}, {"qgroup", "limit", "8M", "0/5", d.At}} {
		if r := harness.Run(t, "btrfs", args...); r.Exit != 0 {
			t.Fatalf("btrfs %q: %s", args, r.Stderr)
		}
	}
	same(t, m, `
f = new("q")
errno("write", lambda: fill(f))
errno("append", lambda: fill(new("q", os.O_APPEND)))
errno("new file", lambda: fill(new("other")))
errno("allocate", lambda: os.posix_fallocate(f, 0, 20 << 20))
errno("allocate more", lambda: os.posix_fallocate(f, 20 << 20, 20 << 20))
done("q", "other")
os.sync()
errno("afterwards", lambda: os.write(new("q"), b"x" * 1000))
done("q")
`)
	m.Check("kept", kept)
}

const writes = `
errno("new file", lambda: new("new"))
errno("open", lambda: os.open("kept", os.O_RDWR))
errno("truncate", lambda: os.truncate("kept", 10))
errno("chmod", lambda: os.chmod("kept", 0o600))
errno("chown", lambda: os.chown("kept", 1, 1))
errno("utime", lambda: os.utime("kept"))
errno("unlink", lambda: os.unlink("kept"))
errno("mkdir", lambda: os.mkdir("d"))
errno("rename", lambda: os.rename("kept", "k"))
errno("link", lambda: os.link("kept", "l"))
errno("symlink", lambda: os.symlink("kept", "s"))
errno("xattr", lambda: os.setxattr("kept", "user.x", b"1"))
errno("read", lambda: os.read(os.open("kept", os.O_RDONLY), 10))
`

// A backing filesystem that was read-only from the start, and one that becomes
// so under the mount.
func TestReadOnlyBacking(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	t.Run("from the start", func(t *testing.T) {
		d := harness.NewDisk(t, "ext4", 32)
		kept := harness.Pattern(7, keepSize)
		harness.WriteFile(t, filepath.Join(d.At, "kept"), kept)
		remount(t, d.At, "ro")
		m := harness.New(t, harness.Config{Backing: d.At})
		same(t, m, writes)
		m.Check("kept", kept)
	})
	t.Run("under the mount", func(t *testing.T) {
		d := harness.NewDisk(t, "ext4", 32)
		m, kept := onDisk(t, d)
		m.Check("kept", kept)
		remount(t, d.At, "ro")
		same(t, m, writes)
		m.Check("kept", kept)
		remount(t, d.At, "rw")
		m.Overwrite("kept", kept, []byte("again"), 100)
	})
}

func remount(t *testing.T, at, option string) {
	t.Helper()
	// -i: without looking for a helper program for the type of filesystem.
	if r := harness.Run(t, "mount", "-i", "-o", "remount,"+option, at); r.Exit != 0 {
		t.Fatalf("mount -o remount,%s %s: %s", option, at, r.Stderr)
	}
}

func TestBusyPrograms(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	m := harness.New(t, harness.Config{})
	m.Sh(`cp "$(type -P sleep)" prog`)
	same(t, m, `
p = subprocess.Popen(["./prog", "1000"])
errno("write", lambda: os.open("prog", os.O_WRONLY))
errno("truncate", lambda: os.truncate("prog", 0))
errno("read", lambda: os.open("prog", os.O_RDONLY))
p.kill(); p.wait()
f = os.open("prog", os.O_WRONLY)
errno("run", lambda: subprocess.Popen(["./prog", "0"]).wait())
os.close(f)
errno("afterwards", lambda: subprocess.Popen(["./prog", "0"]).wait())
`)
	// One that runs from the backing directory, to be written through the mount.
	got := errnos(t, m.Backing, fmt.Sprintf(`
p = subprocess.Popen(["./prog", "1000"])
errno("write", lambda: os.open(%q, os.O_WRONLY))
p.kill(); p.wait()
errno("afterwards", lambda: os.open(%[1]q, os.O_WRONLY))
`, m.Path("prog")))
	if want := "write ETXTBSY\nafterwards works\n"; got != want {
		t.Errorf("a program that runs from the backing directory: %q, want %q", got, want)
	}
}

func TestTooBig(t *testing.T) {
	harness.Need(t, harness.Program("python3"))
	d := harness.NewDisk(t, "ext4", 64)
	m, kept := onDisk(t, d)
	same(t, m, `
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
f = new("big")
most = 16 << 40
for off in (most - 8192, most - 4096, most, 1 << 50, 1 << 62):
    errno(f"write at {off}", lambda: os.pwrite(f, b"x" * 4096, off))
    errno(f"truncate to {off}", lambda: os.ftruncate(f, off))
    errno(f"allocate at {off}", lambda: os.posix_fallocate(f, off, 4096))
os.ftruncate(f, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
print(os.pwrite(f, b"x" * 4096, 98000), os.fstat(f).st_size)
errno("write at the limit", lambda: os.pwrite(f, b"x", 100000))
errno("truncate", lambda: os.ftruncate(f, 100001))
errno("allocate", lambda: os.posix_fallocate(f, 0, 100001))
errno("below", lambda: os.pwrite(f, b"x", 10))
os.unlink("big")
`)
	m.Check("kept", kept)
}

// Without room for records the files are served all the same, and what was lost
// is known for as long as the mount lives; with room, it is written.
func TestFullStateDirectory(t *testing.T) {
	small := harness.Dir(t)
	if err := unix.Mount("small", small, "tmpfs", 0, "size=200m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	m := harness.New(t, harness.Config{State: filepath.Join(small, "s"), Flags: []string{"--simulate", "dax"}})
	data := m.File("f", 1, 64*harness.Page)
	gone := harness.Range{Off: 3 * harness.Page, Len: 2 * harness.Page}
	m.Inject("f", gone)
	filler := filepath.Join(small, "filler")
	_ = exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").Run() // until it is full
	if got := errnos(t, small, `errno("write", lambda: fill(new("filler", os.O_APPEND), 4096))`); !strings.Contains(got, "ENOSPC") {
		t.Fatalf("the state directory is not full: %s", got)
	}
	m.CheckContent("f", data, gone)
	data = m.Overwrite("f", data, harness.Pattern(2, 3*harness.Page), 10*harness.Page+5)
	m.CheckContent("f", data, gone)
	m.File("other", 3, 100_000)
	if rows := m.Lost("f"); len(rows) == 0 {
		t.Error("what was lost is not told")
	}
	eventually(t, func() (bool, string) {
		s := m.Status()
		return len(s.Trouble) > 0, "status does not tell that records can't be kept"
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (bool, string) {
		s := m.Status()
		return len(s.Trouble) == 0, fmt.Sprintf("status still tells %q", s.Trouble)
	})
	m.Restart()
	m.Check("f", data, gone)
}
