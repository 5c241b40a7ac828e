package media

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

const page = ranges.PageSize

// loopFS is a new filesystem on an image in a scratch directory.
type loopFS struct {
	t            *testing.T
	image, mount string
}

func newLoopFS(t *testing.T, kind string) *loopFS {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a loop device")
	}
	dir := t.TempDir()
	l := &loopFS{t: t, image: filepath.Join(dir, "image"), mount: filepath.Join(dir, "mount")}
	if err := errors.Join(os.WriteFile(l.image, nil, 0o600), os.Truncate(l.image, 320<<20), os.Mkdir(l.mount, 0o755)); err != nil {
		t.Fatal(err)
	}
	mkfs := map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F"},
		"xfs":   {"mkfs.xfs", "-q", "-f"},
		"btrfs": {"mkfs.btrfs", "-q", "-m", "single", "-d", "single"},
	}[kind]
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("%s is not installed", mkfs[0])
	}
	l.run(append(mkfs, l.image)...)
	l.mountIt()
	t.Cleanup(func() { _ = unix.Unmount(l.mount, unix.MNT_DETACH) }) // the test may have unmounted it
	return l
}

func (l *loopFS) mountIt() { l.run("mount", "-o", "loop", l.image, l.mount) }

func (l *loopFS) umount() { l.run("umount", l.mount) }

func (l *loopFS) run(args ...string) {
	l.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// shutDown does what "xfs_io -x -c shutdown" does, which would hang if it
// found a hanging mount of anybody's.
func (l *loopFS) shutDown() {
	l.t.Helper()
	dir, err := os.Open(l.mount)
	if err != nil {
		l.t.Fatal(err)
	}
	defer dir.Close()
	const fsIocShutdown = 0x8004587d // _IOR('X', 125, __u32): ext4, XFS, f2fs
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), fsIocShutdown, 0); err != nil {
		l.t.Fatalf("shutting down %s: %v", l.mount, err)
	}
}

// put writes a file of n pages, each full of its own byte, and makes it durable.
func put(t *testing.T, dir, name string, pages int) {
	t.Helper()
	var data []byte
	for i := range pages {
		data = append(data, bytes.Repeat([]byte{byte('A' + i%50)}, page)...)
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// opened is the file as the engine has it, all of it in the page cache.
func opened(t *testing.T, dir, name string) File {
	t.Helper()
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := New(root)
	t.Cleanup(func() {
		if err := errors.Join(m.Close(), f.Close(), unix.Close(root)); err != nil {
			t.Error(err)
		}
	})
	return m.Open(int(f.Fd()))
}

func readAll(t *testing.T, f File, size int) {
	t.Helper()
	buf := make([]byte, size)
	if n, err := f.Pread(buf, 0); n != size || err != nil {
		t.Fatalf("reading it all: %d, %v", n, err)
	}
}

func TestControlOfHealthyFilesystems(t *testing.T) {
	whole := ranges.Of(ranges.Range{Len: 9 * page})
	for _, kind := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		t.Run(kind, func(t *testing.T) {
			dir := "/dev/shm"
			if kind == "tmpfs" {
				var err error
				if dir, err = os.MkdirTemp(dir, "mendfs"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
			} else {
				dir = newLoopFS(t, kind).mount
			}
			put(t, dir, "file", 9)
			f := opened(t, dir, "file")
			readAll(t, f, 9*page)
			for name, avoid := range map[string]*ranges.Set{
				"nothing to avoid": nil,
				"the first page":   ranges.Of(ranges.Page(0)),
				"all but a page":   ranges.Of(ranges.Range{Len: 4 * page}, ranges.Range{Off: 5 * page, Len: 4 * page}),
			} {
				if err := f.Control(avoid); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			err := f.Control(whole)
			if onDevice := kind != "tmpfs"; (err == nil) != onDevice || (!onDevice && !errors.Is(err, ErrNoControl)) {
				t.Errorf("no other page and no other file: %v", err)
			}
			if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, dir, "sub/other", 3)
			if err := f.Control(whole); err != nil {
				t.Errorf("another file: %v", err)
			}
			if err := os.Remove(filepath.Join(dir, "sub/other")); err != nil {
				t.Fatal(err)
			}
			if err := f.Control(whole); (err == nil) != (kind != "tmpfs") {
				t.Errorf("the other file removed: %v", err)
			}
		})
	}
}

// A hole is zeros that no medium delivered.
func TestControlIsNoHole(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "mendfs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	put(t, dir, "file", 1)
	if err := os.Truncate(filepath.Join(dir, "file"), 100*page); err != nil {
		t.Fatal(err)
	}
	if err := opened(t, dir, "file").Control(ranges.Of(ranges.Page(0))); !errors.Is(err, ErrNoControl) {
		t.Fatalf("%v; want %v", err, ErrNoControl)
	}
}

// The image is cut off below the filesystem, while every page of its files
// can still be read from the cache.
func TestControlOfLostDevice(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		for _, pages := range []int{9, 1} {
			t.Run(fmt.Sprintf("%s, %d pages", kind, pages), func(t *testing.T) {
				l := newLoopFS(t, kind)
				put(t, l.mount, "file", pages)
				put(t, l.mount, "other", pages)
				f := opened(t, l.mount, "file")
				readAll(t, f, pages*page)
				if err := f.Control(ranges.Of(ranges.Page(0))); err != nil {
					t.Fatalf("before: %v", err)
				}
				if err := os.Truncate(l.image, 0); err != nil {
					t.Fatal(err)
				}
				readAll(t, f, pages*page)
				if err := f.Control(ranges.Of(ranges.Page(0))); err == nil {
					t.Fatal("the device is gone, and the control read works")
				}
			})
		}
	}
}

func TestControlOfShutDownFilesystem(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, files := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d files", kind, files), func(t *testing.T) {
				l := newLoopFS(t, kind)
				for i := range files {
					put(t, l.mount, fmt.Sprint("file", i), 3)
				}
				f := opened(t, l.mount, "file0")
				if err := Alive(f.Fd()); err != nil {
					t.Errorf("before: %v", err)
				}
				l.shutDown()
				if err := Alive(f.Fd()); !errors.Is(err, unix.EIO) {
					t.Errorf("it is alive: %v; want EIO", err)
				}
				for _, avoid := range []*ranges.Set{nil, ranges.Of(ranges.Range{Len: 3 * page})} {
					if err := f.Control(avoid); !errors.Is(err, unix.EIO) {
						t.Errorf("avoiding %v: %v; want EIO", avoid, err)
					}
				}
			})
		}
	}
}

// Real poison, from the kernel: data that does not fit its checksum.
func TestBtrfsWithCorruptedPage(t *testing.T) {
	l := newLoopFS(t, "btrfs")
	put(t, l.mount, "file", 9)
	l.umount()
	image, err := os.ReadFile(l.image)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(image, bytes.Repeat([]byte{'C'}, page))
	if at < 0 {
		t.Fatal("page 2 is not in the image")
	}
	img, err := os.OpenFile(l.image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = img.WriteAt([]byte("flipped"), int64(at)+100)
	if err := errors.Join(err, img.Close()); err != nil {
		t.Fatal(err)
	}
	l.mountIt()
	f := opened(t, l.mount, "file")
	if _, err := f.Pread(make([]byte, page), 2*page); !errors.Is(err, unix.EIO) {
		t.Fatalf("reading the page: %v; want EIO", err)
	}
	bad := ranges.Page(2 * page)
	if missing, unit := f.Salvage(make([]byte, page), bad.Off); len(missing) != 1 || missing[0] != bad || unit != page {
		t.Fatalf("salvage: missing %v by %d", missing, unit)
	}
	if v := f.Corroborate(bad); v != Unknown {
		t.Fatalf("corroborated: %v", v)
	}
	for _, avoid := range []*ranges.Set{nil, ranges.Of(bad)} {
		if err := f.Control(avoid); err != nil {
			t.Fatalf("control, avoiding %v: %v", avoid, err)
		}
	}
	if n, err := f.Pwrite(make([]byte, page), bad.Off, 0); n != page || err != nil {
		t.Fatalf("writing it whole: %d, %v", n, err)
	}
	readAll(t, f, 9*page)
}
