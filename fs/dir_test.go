package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestDirectory reads a large directory in pieces, goes back to places in it,
// and removes entries meanwhile, with and without names that the kernel keeps.
func TestDirectory(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Second, time.Hour} {
		t.Run(timeout.String(), func(t *testing.T) { readInPieces(t, timeout) })
	}
}

func readInPieces(t *testing.T, timeout time.Duration) {
	m := mountNew(t, serveConfig{Timeout: timeout})
	const files = 3000
	for i := range files {
		write(t, m.below(fmt.Sprintf("a-rather-long-file-name-%d", i)), "")
	}
	fd, err := unix.Open(m.mnt, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	all, offs := getdents(t, fd, files+2)
	unique := append([]string(nil), all...)
	sort.Strings(unique)
	if len(all) != files+2 || unique[0] != "." || unique[1] != ".." {
		t.Fatalf("%d entries", len(all))
	}
	for _, at := range []int{0, 1, 17, 1000, 2900, files} { // telldir, seekdir
		if _, err := unix.Seek(fd, offs[at], unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		rest, _ := getdents(t, fd, files)
		if strings.Join(rest, "/") != strings.Join(all[at+1:], "/") {
			t.Errorf("from entry %d on: %d entries, want %d", at, len(rest), len(all)-at-1)
		}
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil { // rewinddir
		t.Fatal(err)
	}
	first, _ := getdents(t, fd, 10)
	gone := all[2000]
	if err := os.Remove(m.path(gone)); err != nil {
		t.Fatal(err)
	}
	rest, _ := getdents(t, fd, files)
	if n := len(first) + len(rest); n < files+1 || n > files+2 {
		t.Errorf("%d entries, with one removed meanwhile", n)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	if again, _ := getdents(t, fd, files+2); len(again) != files+1 {
		t.Errorf("%d entries after rewinddir", len(again))
	}
}

// getdents reads about most entries, and the offsets behind them.
func getdents(t *testing.T, fd, most int) (names []string, offs []int64) {
	t.Helper()
	buf := make([]byte, 2048)
	for len(names) < most {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		d := dirStream{rest: buf[:n]}
		for len(d.rest) > 0 {
			e, size, err := d.peek()
			if err != nil {
				t.Fatal(err)
			}
			d.next(&e, size)
			names, offs = append(names, e.Name), append(offs, int64(e.Off))
		}
	}
	return names, offs
}

// TestReadDirPlusTellsOnce reads a directory as the kernel does: the second
// time, names come without the lookups that the kernel has just got, until it
// forgets them.
func TestReadDirPlusTellsOnce(t *testing.T) {
	f, dir := unmounted(t, Config{EntryTimeout: time.Hour, AttrTimeout: time.Hour})
	for i := range 3 {
		write(t, filepath.Join(dir, fmt.Sprint(i)), "")
	}
	var opened fuse.OpenOut
	if st := f.OpenDir(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}}, &opened); !st.Ok() {
		t.Fatal(st)
	}
	defer f.ReleaseDir(&fuse.ReleaseIn{Fh: opened.Fh})
	told := func() (ids []uint64) {
		list := fuse.NewDirEntryList(make([]byte, 1<<16), 0)
		if st := f.ReadDirPlus(nil, &fuse.ReadIn{Fh: opened.Fh}, list); !st.Ok() {
			t.Fatal(st)
		}
		names, entries, err := fuse.ParseDirLookupEntries(list.Bytes())
		if err != nil || len(names) != 5 {
			t.Fatalf("%d names, %v", len(names), err)
		}
		for i := range entries {
			if id := entries[i].NodeId; id != 0 {
				ids = append(ids, id)
			}
		}
		return ids
	}
	first := told()
	if len(first) != 3 {
		t.Errorf("told of %d files, want 3", len(first))
	}
	if again := told(); len(again) != 0 {
		t.Errorf("told again of %d files at once", len(again))
	}
	f.Forget(first[0], 1)
	if again := told(); len(again) != 1 || again[0] != first[0] {
		t.Errorf("told of %v after a FORGET of %d", again, first[0])
	}
}

// unmounted is a filesystem over a new directory, to be asked as the kernel
// would. It ends with the test.
func unmounted(t *testing.T, c Config) (f *FS, dir string) {
	t.Helper()
	dir = t.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	engine, done, err := newEngine(int(root.Fd()), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.Root, c.Engine = int(root.Fd()), engine
	if f, err = New(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range []error{f.Close(), done()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return f, dir
}
