package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// handleAt is a file handle made on the mount.
func handleAt(t *testing.T, path string) unix.FileHandle {
	t.Helper()
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// openHandle opens a handle on the mount, and gives what the file holds, or
// the names in the directory.
func (m *mounted) openHandle(h unix.FileHandle) (string, error) {
	m.t.Helper()
	mnt, err := unix.Open(m.mnt, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer unix.Close(mnt)
	fd, err := unix.OpenByHandleAt(mnt, h, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), "handle")
	defer f.Close()
	if names, err := f.Readdirnames(-1); err == nil {
		return strings.Join(names, " "), nil
	}
	b := make([]byte, 1000)
	n, err := f.ReadAt(b, 0)
	if n == 0 {
		return "", err
	}
	return string(b[:n]), nil
}

func (m *mounted) forgetsAll() {
	m.t.Helper()
	m.forgetAll()
	eventually(m.t, "the kernel forgets all but the root", func() bool { return m.stats().Inodes == 1 })
}

// backingForgets drops the names that the backing kernel has in its cache:
// those below the mountpoint at.
func (m *mounted) backingForgets(at string) {
	m.t.Helper()
	if err := unix.Mount("", m.below(at), "", unix.MS_REMOUNT, ""); err != nil {
		m.t.Fatal(err)
	}
}

// TestExport: a file handle made on the mount opens the file again after the
// kernel has forgotten it and after a new mount, and never another file.
func TestExport(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, FS: kind})
			mkdir(t, m.path("d"))
			mkdir(t, m.path("d/e"))
			write(t, m.path("d/e/f"), "content")
			handles := map[string]unix.FileHandle{"content": handleAt(t, m.path("d/e/f")), "f": handleAt(t, m.path("d/e")), "e": handleAt(t, m.path("d"))}
			check := func(when string) {
				t.Helper()
				for want, h := range handles {
					if got, err := m.openHandle(h); got != want || err != nil {
						t.Errorf("%s: %q, %v; want %q", when, got, err, want)
					}
				}
			}
			check("known")
			m.forgetsAll()
			check("forgotten")
			m.forgetsAll()
			m.backingForgets(".")
			check("forgotten in both")
			m.again()
			check("mounted again")

			f, err := os.Open(m.path("d/e/f")) // it is there as long as it is open
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := os.Remove(m.path("d/e/f")); err != nil {
				t.Fatal(err)
			}
			if got, err := m.openHandle(handles["content"]); got != "content" || err != nil {
				t.Errorf("removed and open: %q, %v", got, err)
			}
			f.Close()
			eventually(t, "the file is gone", func() bool {
				_, err := m.openHandle(handles["content"])
				return errors.Is(err, unix.ESTALE)
			})
			old, made := handles["content"], 0
			eventually(t, "another file has the inode number", func() (reused bool) { // XFS frees it in the background
				for range 50 {
					made++
					path := m.path(fmt.Sprint("d/e/", made))
					write(t, path, "another")
					h := handleAt(t, path)
					reused = reused || string(h.Bytes()[:8]) == string(old.Bytes()[:8])
				}
				return reused
			})
			for range 2 {
				if got, err := m.openHandle(handles["content"]); !errors.Is(err, unix.ESTALE) {
					t.Errorf("another file has its number: %q, %v", got, err)
				}
				m.forgetsAll()
			}
		})
	}
}

// TestExportForgotten: where handles can't be made of node ids, a forgotten
// file is stale, and never another one.
func TestExportForgotten(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour, FS: "tmpfs"})
	write(t, m.path("f"), "x")
	h := handleAt(t, m.path("f"))
	if got, err := m.openHandle(h); got != "x" || err != nil {
		t.Errorf("known: %q, %v", got, err)
	}
	m.forgetsAll()
	if got, err := m.openHandle(h); !errors.Is(err, unix.ESTALE) {
		t.Errorf("forgotten: %q, %v", got, err)
	}
}

// forge makes the handle that the mount would make of a backing file, if
// that was below the root. FUSE has the halves of the node id the other way round.
func forge(t *testing.T, path string) unix.FileHandle {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, uint32(st.Ino>>32))
	b = binary.NativeEndian.AppendUint32(b, uint32(st.Ino))
	h := handleAt(t, path)
	below := h.Bytes() // the generation is the last of it
	return unix.NewFileHandle(0x81, append(b, below[len(below)-4:]...))
}

// TestExportBelow: with a sub-directory of a filesystem as the root, no handle
// opens what lies outside.
func TestExportBelow(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, FS: kind, Below: "sub"})
			mkdir(t, m.below("d"))
			write(t, m.below("d/f"), "inside")
			mkdir(t, m.below("../sub2")) // whose name begins with the root's
			mkdir(t, m.below("../sub2/out"))
			write(t, m.below("../sub2/out/f"), "outside")

			inside := map[string]unix.FileHandle{"f": forge(t, m.below("d")), "inside": forge(t, m.below("d/f"))}
			for want, h := range inside {
				if got, err := m.openHandle(h); got != want || err != nil {
					t.Errorf("inside: %q, %v; want %q", got, err, want)
				}
			}
			outside := []string{"../sub2/out/f", "../sub2/out", "../sub2", ".."}
			stale := func(when string, names ...string) {
				t.Helper()
				for _, name := range names {
					if got, err := m.openHandle(forge(t, m.below(name))); !errors.Is(err, unix.ESTALE) {
						t.Errorf("%s %s: %q, %v", name, when, got, err)
					}
				}
			}
			stale("outside", outside...)
			h := forge(t, m.below("d/f"))
			m.forgetsAll()
			m.backingForgets("..")
			if got, err := m.openHandle(h); !errors.Is(err, unix.ESTALE) {
				t.Errorf("a file of whose name nobody knows: %q, %v", got, err)
			}
			if got, err := m.openHandle(inside["f"]); got != "f" || err != nil {
				t.Errorf("a directory can be followed up: %q, %v", got, err)
			}
			m.forgetsAll()
			if err := os.Rename(m.below("d"), m.below("../moved")); err != nil {
				t.Fatal(err)
			}
			stale("moved out", append(outside, "../moved", "../moved/f")...)
		})
	}
}
