package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openPath opens a file as a lookup does, and gives its key.
func openPath(t *testing.T, path string) (int, key) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		t.Fatal(err)
	}
	return fd, keyOf(&st)
}

func tableOf(t *testing.T, limit, files int) (*table, []string) {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i := range files {
		paths = append(paths, filepath.Join(dir, fmt.Sprint(i)))
		write(t, paths[i], "")
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	table, err := newTable(int(root.Fd()), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.close(); err != nil {
			t.Error(err)
		}
	})
	return table, paths
}

// TestLookupAgainstForget lets lookups and forgets of the same files race:
// every inode that a lookup gave is there until as many are forgotten.
func TestLookupAgainstForget(t *testing.T) {
	table, paths := tableOf(t, 3, 4)
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() { // ends by itself
			for i := range 500 {
				fd, k := openPath(t, paths[(i+w)%len(paths)])
				n := table.enter(fd, k, unix.S_IFREG)
				table.release(n)
				again, err := table.acquire(n.id)
				if err != nil || again != n {
					t.Errorf("known to the kernel, but: %v", err)
					return
				}
				table.release(n)
				table.forget(n.id, 1)
			}
		})
	}
	all.Wait()
	if s := table.stats(); s != (Stats{Inodes: 1, Fds: 1}) {
		t.Errorf("all is forgotten, but there is %+v", s)
	}
}

func TestTable(t *testing.T) {
	table, paths := tableOf(t, 0, 1)
	enter := func() *inode {
		fd, k := openPath(t, paths[0])
		n := table.enter(fd, k, unix.S_IFREG)
		table.release(n)
		return n
	}
	n := enter()
	if m := enter(); m != n || n.lookups != 2 {
		t.Errorf("two lookups give %p and %p", n, m)
	}
	table.hold(n) // an open file
	table.forget(n.id, 2)
	if m := enter(); m != n {
		t.Error("an open file has two inodes")
	}
	table.forget(n.id, 1)
	table.unhold(n)
	if _, err := table.acquire(n.id); err != unix.ESTALE {
		t.Errorf("forgotten and closed: %v", err)
	}
	if m := enter(); m.id == n.id {
		t.Error("a node id was used twice")
	}
	table.forget(fuse.FUSE_ROOT_ID, 100)
	if _, err := table.acquire(fuse.FUSE_ROOT_ID); err != nil {
		t.Errorf("the root: %v", err)
	}
	table.forget(12345, 1) // unknown: nothing happens
}

// TestUnlinkedKeepsItsDescriptor: it is the only way to the file.
func TestUnlinkedKeepsItsDescriptor(t *testing.T) {
	table, paths := tableOf(t, 2, 5)
	fd, k := openPath(t, paths[0])
	n := table.enter(fd, k, unix.S_IFREG)
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	table.release(n)
	for _, path := range paths[1:] {
		fd, k := openPath(t, path)
		table.release(table.enter(fd, k, unix.S_IFREG))
	}
	if n.fd < 0 {
		t.Error("the descriptor of a file without links was closed")
	}
	if s := table.stats(); s.Inodes != 6 || s.Fds > 3 {
		t.Errorf("%+v", s)
	}
}
