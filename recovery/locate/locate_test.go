package locate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// filesystems are those that know owners, and those that don't.
var filesystems = map[string][]string{
	"ext4":          {"mkfs.ext4", "-q"},
	"xfs":           {"mkfs.xfs", "-q", "-m", "rmapbt=0,reflink=1"},
	"xfs with rmap": {"mkfs.xfs", "-q", "-m", "rmapbt=1,reflink=1"},
}

// each runs test on a new filesystem of each kind.
func each(t *testing.T, test func(t *testing.T, s *site)) {
	for kind := range filesystems {
		t.Run(kind, func(t *testing.T) { test(t, newSite(t, kind)) })
	}
}

// site is a filesystem on a loop device.
type site struct {
	t    *testing.T
	kind string
	dir  string
	size int64
	root int
}

func newSite(t *testing.T, kind string) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: making filesystems needs root")
	}
	mkfs := filesystems[kind]
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	s := &site{t: t, kind: kind, dir: filepath.Join(t.TempDir(), "fs"), size: 400 << 20, root: -1}
	image := s.dir + ".img"
	if err := errors.Join(os.Mkdir(s.dir, 0o755), os.WriteFile(image, nil, 0o600), os.Truncate(image, s.size)); err != nil {
		t.Fatal(err)
	}
	s.run(append(slices.Clip(mkfs), image)...)
	if out, err := exec.Command("mount", "-o", "loop", image, s.dir).CombinedOutput(); err != nil {
		t.Skipf("SKIP: loop mounts of %s: %s", mkfs[0], out)
	}
	t.Cleanup(func() {
		if s.root >= 0 {
			_ = unix.Close(s.root) // O_PATH
		}
		s.run("umount", s.dir)
	})
	s.root = s.open(s.dir, unix.O_PATH|unix.O_DIRECTORY)
	return s
}

func (s *site) run(command ...string) {
	s.t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %v: %s", command, err, out)
	}
}

func (s *site) open(path string, flags int) int {
	s.t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return fd
}

// file makes a file of so many pages, on the disk when it returns.
func (s *site) file(name string, pages int) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = f.Write([]byte(strings.Repeat("x", pages*ranges.PageSize)))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// on is where bytes of a file lie on the device.
func (s *site) on(name string, r ranges.Range) ranges.Range {
	s.t.Helper()
	fd := s.open(filepath.Join(s.dir, name), unix.O_RDONLY)
	defer unix.Close(fd)
	extents, err := pmem.Extents(fd, r)
	if err != nil || len(extents) != 1 || extents[0].File != r {
		s.t.Fatalf("%s %v lies at %v, %v", name, r, extents, err)
	}
	return extents[0].On()
}

// find is the answer, one line for each place.
func (s *site) find(root int, bad ...ranges.Range) []string {
	s.t.Helper()
	found, err := Find(context.Background(), root, ranges.Of(bad...), 2)
	if err != nil {
		s.t.Fatal(err)
	}
	if found.Skipped > 0 {
		s.t.Errorf("skipped %d, the first for %v", found.Skipped, found.Why)
	}
	var out []string
	for _, p := range found.Places {
		line := fmt.Sprint(p.Kind, " ", p.Path)
		if p.Kind == pmem.File {
			line += fmt.Sprint(" ", p.In())
			fd := s.open(filepath.Join(s.dir, p.Path), unix.O_PATH)
			if id, err := fileid.Of(fd); err != nil || id.Key() != p.File.Key() {
				s.t.Errorf("%s is %v, told as %v, %v", p.Path, id, p.File, err)
			}
			_ = unix.Close(fd) // O_PATH
		}
		out = append(out, line)
	}
	return out
}

func (s *site) wants(what string, got []string, want ...string) {
	s.t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

func rng(off, n int64) ranges.Range { return ranges.Range{Off: off, Len: n} }

func TestFind(t *testing.T) {
	each(t, func(t *testing.T, s *site) {
		for d := range 3 {
			s.run("mkdir", "-p", fmt.Sprintf("%s/d%d/e", s.dir, d))
			for f := range 50 {
				s.file(fmt.Sprintf("d%d/e/f%d", d, f), 3)
			}
		}
		s.file("top", 8)
		s.run("ln", s.dir+"/d1/e/f7", s.dir+"/again")
		s.run("ln", "-s", "top", s.dir+"/link")
		one := s.on("d1/e/f7", rng(4096+512, 512))
		two := s.on("top", rng(0, 1024))
		three := s.on("d2/e/f49", rng(2*4096, 4096))
		got := s.find(s.root, one, two, three)
		for i, line := range got { // either of its names will do
			got[i] = strings.Replace(line, "again", "d1/e/f7", 1)
		}
		s.wants("three files", got, "file d1/e/f7 [4608 +512)", "file top [0 +1024)", "file d2/e/f49 [8192 +4096)")
		s.wants("nothing", s.find(s.root))
	})
}

func TestFindElsewhere(t *testing.T) {
	each(t, func(t *testing.T, s *site) {
		s.file("f", 4)
		s.run("mkdir", s.dir+"/sub")
		superblock := "metadata "
		if s.kind == "xfs" {
			superblock = "unknown " // it only knows what is free
		}
		s.wants("the superblock", s.find(s.root, rng(1024, 512)), superblock)
		s.wants("free space", s.find(s.root, rng(380<<20, 512)), "free ")
		sub := s.open(s.dir+"/sub", unix.O_PATH|unix.O_DIRECTORY)
		defer unix.Close(sub)
		s.wants("a file that is not below the root", s.find(sub, s.on("f", rng(4096, 512))), "unknown ")
	})
}

// Two files of one block, and reserved space that nobody has written.
func TestFindSharedAndReserved(t *testing.T) {
	s := newSite(t, "xfs with rmap")
	s.file("a", 4)
	s.run("cp", "--reflink=always", s.dir+"/a", s.dir+"/b")
	s.run("sync", "-f", s.dir)
	s.wants("a shared block", s.find(s.root, s.on("a", rng(4096, 512))), "file a [4096 +512)", "file b [4096 +512)")

	s = newSite(t, "ext4")
	s.run("fallocate", "-l", "16384", s.dir+"/reserved")
	s.run("sync", "-f", s.dir)
	s.wants("reserved space", s.find(s.root, s.on("reserved", rng(4096, 512))), "free reserved")
}

// What is mounted below has nothing to do with this device.
func TestFindStaysOnTheFilesystem(t *testing.T) {
	each(t, func(t *testing.T, s *site) {
		other := newSite(t, "ext4")
		other.file("f", 4)
		s.run("mkdir", s.dir+"/sub")
		s.file("bound", 1)
		s.run("mount", "--bind", other.dir, s.dir+"/sub")
		defer s.run("umount", s.dir+"/sub")
		s.run("mount", "--bind", other.dir+"/f", s.dir+"/bound")
		defer s.run("umount", s.dir+"/bound")
		for _, line := range s.find(s.root, other.on("f", rng(0, 4096))) {
			if strings.HasPrefix(line, "file") {
				t.Errorf("found in %s, on another device", line)
			}
		}
	})
}

func TestFindEndsWithItsContext(t *testing.T) {
	s := newSite(t, "ext4")
	s.file("f", 4)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Find(ctx, s.root, ranges.Of(s.on("f", rng(0, 512))), 2); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancelling: %v", err)
	}
}
