package fs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eachProtect runs a test on a mount in each mode of protection, which promises
// the kernel that nobody else changes files: what it keeps of them is kept long.
func eachProtect(t *testing.T, test func(t *testing.T, m *mounted)) {
	for _, protect := range []Protect{ProtectFull, ProtectRW, ProtectKnown} {
		t.Run(protect.String(), func(t *testing.T) {
			test(t, mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true, Protect: protect}))
		})
	}
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("open %s with %#x: %v", path, flags, err)
	}
	return fd
}

func closeFd(t *testing.T, fd int) {
	t.Helper()
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}

// mapShared maps a page of the file open at fd, which is closed.
func mapShared(t *testing.T, fd int) []byte {
	t.Helper()
	mapped, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	closeFd(t, fd)
	return mapped
}

func unmap(t *testing.T, mapped []byte) {
	t.Helper()
	if err := unix.Munmap(mapped); err != nil {
		t.Error(err)
	}
}

// TestMappingOutlivesClose is what Linux does, and ioMode relies on: a mapping
// made by way of passthrough does not hold back RELEASE, but FORGET.
func TestMappingOutlivesClose(t *testing.T) {
	for _, protect := range []Protect{ProtectRW, ProtectKnown} {
		t.Run(protect.String(), func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true, Protect: protect})
			write(t, m.path("f"), strings.Repeat("a", 4096))
			mapped := mapShared(t, open(t, m.path("f"), unix.O_RDWR))
			eventually(t, "RELEASE", func() bool { return m.stats().Handles == 0 })
			if err := os.Remove(m.path("f")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond) // were it to be forgotten, it would be by then
			if s := m.stats(); s.Inodes != 2 {
				t.Errorf("%d inodes with the file mapped, want the root and the file", s.Inodes)
			}
			mapped[0] = 'b'
			unmap(t, mapped)
			eventually(t, "FORGET", func() bool { return m.stats().Inodes == 1 })
		})
	}
}

// TestUnused: whatever has a file open is seen, whoever owns the file.
func TestUnused(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Skip("SKIP: only root can ask for others")
	}
	callers, err := newCallers()
	if err != nil {
		t.Fatal(err)
	}
	defer callers.close()
	f := &FS{callers: callers}
	for _, kind := range []string{"", "tmpfs", "ext4", "xfs", "btrfs"} {
		t.Run("on "+kind, func(t *testing.T) {
			dir := newDir(t)
			if kind != "" {
				mountFS(t, kind, dir)
			}
			path := filepath.Join(dir, "f")
			write(t, path, strings.Repeat("a", 4096))
			if err := os.Chown(path, 1000, 1000); err != nil {
				t.Fatal(err)
			}
			want := func(what string, want bool) {
				t.Helper()
				for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
					fd := open(t, path, flags)
					if got := f.unused(fd); got != want {
						t.Errorf("%s: unused is %v for an open with %#x", what, got, flags)
					}
					closeFd(t, fd)
				}
			}
			want("nobody", true)
			path2 := open(t, path, unix.O_PATH)
			want("an O_PATH descriptor", true)
			closeFd(t, path2)
			for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
				fd := open(t, path, flags)
				want("an open", false)
				closeFd(t, fd)
			}
			mapped := mapShared(t, open(t, path, unix.O_RDWR))
			want("a mapping", false)
			unmap(t, mapped)
			want("nobody any more", true)
		})
	}
}

// TestOpensOfAllKinds has every kind of open beside every other, and a mapping:
// none may fail, or fail in another way than on the backing.
func TestOpensOfAllKinds(t *testing.T) {
	kinds := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_APPEND, unix.O_RDONLY | unix.O_DIRECT,
		unix.O_RDWR | unix.O_TRUNC, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_SYNC, unix.O_RDONLY | unix.O_NOATIME}
	eachProtect(t, func(t *testing.T, m *mounted) {
		fd := open(t, m.path("f"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR)
		if err := unix.Ftruncate(fd, 4096); err != nil {
			t.Fatal(err)
		}
		mapped := mapShared(t, fd)
		for _, a := range kinds {
			for _, b := range kinds {
				one := open(t, m.path("f"), a)
				other := open(t, m.path("f"), b)
				closeFd(t, one)
				closeFd(t, open(t, m.path("f"), a))
				closeFd(t, other)
			}
		}
		unmap(t, mapped)
		closeFd(t, open(t, m.mnt, unix.O_TMPFILE|unix.O_RDWR))
		eventually(t, "RELEASE", func() bool { return m.stats().Handles == 0 })
	})
}

// TestWhoSeesWhat: what one open writes, the others and stat see at once.
func TestWhoSeesWhat(t *testing.T) {
	eachProtect(t, func(t *testing.T, m *mounted) {
		write(t, m.path("f"), strings.Repeat("a", 4096))
		fd := open(t, m.path("f"), unix.O_RDWR)
		mapped := mapShared(t, open(t, m.path("f"), unix.O_RDWR))
		defer unmap(t, mapped)
		look := func() (st unix.Stat_t) {
			t.Helper()
			if err := unix.Stat(m.path("f"), &st); err != nil {
				t.Fatal(err)
			}
			return st
		}
		long := time.Unix(1, 0)
		if err := os.Chtimes(m.path("f"), long, long); err != nil {
			t.Fatal(err)
		}
		look()
		if _, err := unix.Pwrite(fd, []byte("bbbb"), 4094); err != nil {
			t.Fatal(err)
		}
		if st := look(); st.Size != 4098 || st.Mtim.Sec == 1 {
			t.Errorf("after a write: size %d, mtime %d", st.Size, st.Mtim.Sec)
		}
		if got := string(mapped[4092:]); got != "aabb" {
			t.Errorf("the mapping shows %q after a write", got)
		}
		if err := os.Chtimes(m.path("f"), long, long); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fsync(fd); err != nil { // so that the mapping is clean, and a store is noticed
			t.Fatal(err)
		}
		look()
		mapped[0] = 'm'
		if err := unix.Msync(mapped, unix.MS_SYNC); err != nil {
			t.Fatal(err)
		}
		if st := look(); st.Mtim.Sec == 1 {
			t.Error("mtime does not move when a mapping is written")
		}
		if got := read(t, m.path("f")); got[:2] != "ma" || len(got) != 4098 {
			t.Errorf("%d bytes, %q... after the mapping was written", len(got), got[:2])
		}
		if err := unix.Ftruncate(fd, 100); err != nil {
			t.Fatal(err)
		}
		if got := read(t, m.path("f")); len(got) != 100 || read(t, m.below("f")) != got {
			t.Errorf("%d bytes after ftruncate", len(got))
		}
		closeFd(t, fd)
	})
}

// TestExecutedFile: a running program can't be written, and a file that is being
// written can't be run.
func TestExecutedFile(t *testing.T) {
	eachProtect(t, func(t *testing.T, m *mounted) {
		sh(t, m.mnt, root, `cp /bin/sleep x`)
		run := exec.Command(m.path("x"), "100")
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		_, err := unix.Open(m.path("x"), unix.O_WRONLY, 0)
		if !errors.Is(err, unix.ETXTBSY) {
			t.Errorf("opening a running program for writing: %v", err)
		}
		if err := run.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = run.Wait() // killed
		fd := open(t, m.path("x"), unix.O_WRONLY)
		if err := exec.Command(m.path("x"), "0").Run(); !errors.Is(err, unix.ETXTBSY) {
			t.Errorf("running a file that is open for writing: %v", err)
		}
		closeFd(t, fd)
		eventually(t, "RELEASE", func() bool { return m.stats().Handles == 0 })
		if err := exec.Command(m.path("x"), "0").Run(); err != nil {
			t.Errorf("running it afterwards: %v", err)
		}
	})
}

// An append-only file (chattr +a) can't be changed by who may append to it,
// though the kernel takes it for an ordinary one: not by way of a mapping,
// neither below nor in what others read.
func TestAppendOnly(t *testing.T) {
	eachProtect(t, func(t *testing.T, m *mounted) {
		write(t, m.path("log"), "original\n")
		sh(t, m.mnt, root, `chmod 666 log; chattr +a log`)
		defer sh(t, m.mnt, root, `chattr -a log`)
		reader := open(t, m.path("log"), unix.O_RDONLY)
		said := sh(t, m.mnt, alice, `python3 - <<'EOF'
import fcntl, mmap, os
fd = os.open('log', os.O_RDWR | os.O_APPEND)
try:
	mmap.mmap(fd, 8, mmap.MAP_SHARED)[0:8] = b'FORGED!!'
	print('mapped')
except OSError:
	pass
fcntl.fcntl(fd, fcntl.F_SETFL, 0)
os.pwrite(fd, b'appended', 0)
print(os.pread(fd, 100, 0).decode())
EOF`)
		const want = "original\nappended"
		if said != want+"\n" {
			t.Errorf("the user who may append: %q", said)
		}
		if got := read(t, m.path("log")); got != want {
			t.Errorf("others read %q", got)
		}
		if got := read(t, m.below("log")); got != want {
			t.Errorf("%q below", got)
		}
		closeFd(t, reader)
	})
}

// What is open in passthrough when it becomes append-only keeps others from
// appending until it is closed.
func TestAppendOnlyWhileOpen(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true, Protect: ProtectRW})
	write(t, m.path("log"), "x")
	fd := open(t, m.path("log"), unix.O_RDONLY)
	sh(t, m.mnt, root, `chattr +a log`)
	defer sh(t, m.mnt, root, `chattr -a log`)
	if own, err := unix.Open(m.path("log"), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opened to append: %d, %v", own, err)
	}
	closeFd(t, open(t, m.path("log"), unix.O_RDONLY))
	closeFd(t, fd)
	eventually(t, "it can be appended to", func() bool {
		own, err := unix.Open(m.path("log"), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
		return err == nil && unix.Close(own) == nil
	})
}
