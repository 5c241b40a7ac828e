package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/media/pmem/pmemtest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// fakePmem is what the serving process has to know of a pmemtest.Disk.
type fakePmem struct{ At, Sys, Dev string }

// configure gives the engine a medium whose writes clear what they cover, unless
// there is a file "refuse".
func (p *fakePmem) configure(c *recovery.Config) error {
	var st unix.Stat_t
	if err := unix.Fstat(c.Root, &st); err != nil {
		return err
	}
	v, err := pmem.Kernel{Sys: p.Sys, Dev: p.Dev}.Open(st.Dev)
	if err != nil {
		return err
	}
	c.Medium = clearing{media.NewOnPmem(c.Root, v), p}
	c.Semantics, err = recovery.SemanticsByName("recover")
	return err
}

func (p *fakePmem) refuse() string { return filepath.Join(p.Sys, "refuse") }

type clearing struct {
	*media.Real
	disk *fakePmem
}

func (m clearing) Open(fd int) media.File { return clearingFile{m.Real.Open(fd), m.disk} }

type clearingFile struct {
	media.File
	disk *fakePmem
}

func (f clearingFile) Pwrite(b []byte, off int64, uid uint32) (int, error) {
	own, _, err := f.Device().Listed(ranges.Range{Off: off, Len: int64(len(b))})
	if err != nil || own.Empty() {
		return f.File.Pwrite(b, off, uid)
	}
	if _, err := os.Stat(f.disk.refuse()); err == nil {
		return 0, unix.EFAULT
	}
	path := filepath.Join(f.disk.Sys, "block/pmem0/badblocks")
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	list, err := pmem.ParseBadblocks(string(text))
	if err != nil {
		return 0, err
	}
	at, _ := f.Device().Place(off)
	list.Bad.Remove(ranges.Range{Off: at.Sector * ranges.SectorSize, Len: int64(len(b))})
	var left strings.Builder
	for r := range list.Bad.All() {
		fmt.Fprintf(&left, "%d %d\n", r.Off/ranges.SectorSize, r.Len/ranges.SectorSize)
	}
	if err := os.WriteFile(path, []byte(left.String()), 0o644); err != nil { // nobody else changes it now
		return 0, err
	}
	return f.File.Pwrite(b, off, uid)
}

// mountPmem serves a filesystem on a disk that lists what a test wants.
func mountPmem(t *testing.T, kind string) (*mounted, *pmemtest.Disk) {
	t.Helper()
	d := pmemtest.New(t, kind)
	k := d.Kernel()
	return mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true, Pmem: &fakePmem{At: d.At, Sys: k.Sys, Dev: k.Dev}}), d
}

// poison lists a sector of the file that below is open on, and waits until the
// serving process knows that there is something listed.
func (m *mounted) poison(d *pmemtest.Disk, below *os.File) {
	m.t.Helper()
	d.Poison(int(below.Fd()), ranges.Range{Off: 4096 + 512, Len: 512})
	for m.ask("listed") != "true" {
		time.Sleep(time.Millisecond)
	}
}

// poisonFile is poison by name.
func (m *mounted) poisonFile(d *pmemtest.Disk, name string) {
	m.t.Helper()
	f, err := os.Open(m.below(name))
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	m.poison(d, f)
}

// awaitClean waits until nothing is listed: the kernel's FORGET comes when it likes.
func awaitClean(t *testing.T, d *pmemtest.Disk) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !d.Listed().Empty(); {
		if time.Now().After(end) {
			t.Fatalf("still listed: %v", d.Listed())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRemovedFilesAreClean: the poison that is listed in a file is cleared before its
// blocks are free.
func TestRemovedFilesAreClean(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m, d := mountPmem(t, kind)
			content := strings.Repeat("data", 3000)
			for name, remove := range map[string]func() error{
				"unlink": func() error { m.poisonFile(d, "f"); return os.Remove(m.path("f")) },
				"rename over": func() error {
					m.poisonFile(d, "f")
					return errors.Join(os.WriteFile(m.path("g"), nil, 0o644), os.Rename(m.path("g"), m.path("f")))
				},
				"rename over, and a whiteout": func() error {
					m.poisonFile(d, "f")
					return errors.Join(os.WriteFile(m.path("g"), nil, 0o644), unix.Renameat2(unix.AT_FDCWD, m.path("g"), unix.AT_FDCWD, m.path("f"), unix.RENAME_WHITEOUT), os.Remove(m.path("g")))
				},
				"truncating open": func() error { m.poisonFile(d, "f"); return os.WriteFile(m.path("f"), nil, 0o644) },
				"last close": func() error {
					f, err := os.Open(m.path("f"))
					if err != nil {
						return err
					}
					below, err := os.Open(m.below("f")) // to have it poisoned when it has no name
					if err != nil {
						return err
					}
					if err := os.Remove(m.path("f")); err != nil {
						return err
					}
					m.poison(d, below)
					return errors.Join(below.Close(), f.Close())
				},
			} {
				write(t, m.path("f"), content)
				if err := remove(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				t.Log(name)
				awaitClean(t, d)
				if err := os.RemoveAll(m.path("f")); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestHeldFilesAreCleanAtLast: a removed file that is held by O_PATH is waited for once,
// and still cleared when it goes.
func TestHeldFilesAreCleanAtLast(t *testing.T) {
	m, d := mountPmem(t, "xfs")
	write(t, m.path("f"), strings.Repeat("data", 3000))
	below, err := os.Open(m.below("f"))
	if err != nil {
		t.Fatal(err)
	}
	held := open(t, m.path("f"), unix.O_PATH)
	if err := os.Remove(m.path("f")); err != nil {
		t.Fatal(err)
	}
	m.poison(d, below)
	if err := below.Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.mnt, &st); err != nil {
		t.Fatal(err)
	}
	closeFd(t, held)
	awaitClean(t, d)
}

// TestFilesMadeWithoutANameAreClean: O_TMPFILE, which nobody ever removes.
func TestFilesMadeWithoutANameAreClean(t *testing.T) {
	m, d := mountPmem(t, "xfs")
	fd := open(t, m.mnt, unix.O_TMPFILE|unix.O_RDWR)
	if _, err := unix.Write(fd, []byte(strings.Repeat("data", 3000))); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fsync(fd); err != nil {
		t.Fatal(err)
	}
	below := m.serversOwn(t)
	m.poison(d, below)
	if err := below.Close(); err != nil {
		t.Fatal(err)
	}
	closeFd(t, fd)
	awaitClean(t, d)
}

// serversOwn is the file without a name that the serving process has open.
func (m *mounted) serversOwn(t *testing.T) *os.File {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		name, err := os.Readlink(fd)
		if err != nil || !strings.HasSuffix(name, "(deleted)") || !strings.Contains(name, "/#") {
			continue
		}
		if f, err := os.Open(fd); err == nil {
			return f
		}
	}
	t.Fatalf("process %d has no file without a name", m.pid)
	return nil
}

// TestRemovalThatWouldFreePoison: what the device won't clear keeps its name on XFS,
// which would shut down when it allocates the block again.
func TestRemovalThatWouldFreePoison(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			m, d := mountPmem(t, kind)
			write(t, m.path("f"), strings.Repeat("data", 3000))
			write(t, m.path("g"), "")
			write(t, m.path("h"), "")
			m.poisonFile(d, "f")
			if err := os.WriteFile(m.config.Pmem.refuse(), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			var want error
			if kind == "xfs" {
				want = unix.EIO
			}
			if err := os.Rename(m.path("g"), m.path("f")); !errors.Is(err, want) {
				t.Errorf("rename over: %v", err)
			}
			if err := unix.Renameat2(unix.AT_FDCWD, m.path("h"), unix.AT_FDCWD, m.path("f"), unix.RENAME_WHITEOUT); !errors.Is(err, want) {
				t.Errorf("rename over, and a whiteout: %v", err)
			}
			if err := os.Remove(m.path("f")); kind == "xfs" && !errors.Is(err, unix.EIO) {
				t.Errorf("unlink: %v", err)
			}
			if _, err := os.Stat(m.path("f")); (err == nil) != (kind == "xfs") {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// TestClonesAreRefused: a reflink would clone the poison, and a shared page has hardly
// a cure. The kernel's FUSE knows no clone (Linux 6.18); none may reach the backing by
// another way either.
func TestClonesAreRefused(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour, FS: "xfs"})
	content := strings.Repeat("data", 3000)
	write(t, m.path("f"), content)
	src, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(m.path("g"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	in, out := int(src.Fd()), int(dst.Fd())
	if err := unix.IoctlFileClone(out, in); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("FICLONE: %v", err)
	}
	if err := unix.IoctlFileCloneRange(out, &unix.FileCloneRange{Src_fd: int64(in), Src_length: 4096}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("FICLONERANGE: %v", err)
	}
	if n, err := unix.CopyFileRange(in, nil, out, nil, len(content), 0); err != nil || n != len(content) {
		t.Fatalf("copy_file_range = %d, %v", n, err)
	}
	if err := dst.Sync(); err != nil {
		t.Fatal(err)
	}
	below, err := os.Open(m.below("g"))
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	extents, err := pmem.Extents(int(below.Fd()), ranges.Range{Len: 1 << 20})
	if err != nil || len(extents) == 0 {
		t.Fatalf("%v, %v", extents, err)
	}
	for _, e := range extents {
		if e.Shared() {
			t.Errorf("the copy shares %+v", e)
		}
	}
}

// TestNoMappingOfTheBacking: memory that a poisoned file is mapped to must never be a
// source of the kernel's, whose copies from there are not safe from machine checks
// (kernel facts 8); so the serving process maps no file of the backing.
func TestNoMappingOfTheBacking(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour})
	write(t, m.path("f"), strings.Repeat("data", 300000))
	if got, err := os.ReadFile(m.path("f")); err != nil || len(got) != 1200000 {
		t.Fatal(len(got), err)
	}
	sh(t, m.mnt, user{}, "cp f g && truncate -s 5000 f && dd if=g of=f bs=1000 conv=notrunc && rm g")
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(maps), "/ledger.db") {
		t.Error("not even the ledger is mapped: these are not the maps of the serving process")
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, m.backing) {
			t.Error(line)
		}
	}
}
