package fs

import (
	"errors"
	"fmt"
	"maps"
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
				n := table.enter(fd, k, unix.S_IFREG, false)
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
		n := table.enter(fd, k, unix.S_IFREG, false)
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
	if m := enter(); (m.id == n.id) != (table.export != nil) {
		t.Errorf("node ids %#x and %#x: the same, where it is the inode number, and counted elsewhere", n.id, m.id)
	}
	table.forget(fuse.FUSE_ROOT_ID, 100)
	if _, err := table.acquire(fuse.FUSE_ROOT_ID); err != nil {
		t.Errorf("the root: %v", err)
	}
	table.forget(12345, 1) // unknown: nothing happens
}

// TestTakenNumber: the kernel still knows a removed file whose descriptor was
// closed, when another file gets its inode number.
func TestTakenNumber(t *testing.T) {
	table, paths := tableOf(t, 0, 1)
	if table.export == nil {
		t.Skip("SKIP: node ids are inode numbers on ext4 and XFS only; TMPDIR is on neither")
	}
	fd, k := openPath(t, paths[0])
	old := table.enter(fd, k, unix.S_IFREG, false)
	table.release(old)
	table.mu.Lock()
	table.closeFd(old)
	old.generation++ // it was another file
	table.unlock()
	var ids []uint64
	for range 2 {
		fd, k = openPath(t, paths[0])
		n := table.enter(fd, k, unix.S_IFREG, false)
		table.release(n)
		ids = append(ids, n.id)
	}
	if ids[0] != ids[1] || ids[0]&counted == 0 || old.id != k.ino {
		t.Errorf("the old file is %d, the new one %#x", old.id, ids)
	}
	if _, err := table.acquire(old.id); !errors.Is(err, unix.ESTALE) {
		t.Errorf("the old file: %v", err)
	}
	table.forget(old.id, 1)
	if id, ok := table.idOf(k.ino); !ok || id != ids[0] {
		t.Errorf("by inode number: %#x", id)
	}
	table.forget(ids[0], 2)
	fd, k = openPath(t, paths[0])
	n := table.enter(fd, k, unix.S_IFREG, false)
	table.release(n)
	if n.id != k.ino {
		t.Errorf("all is forgotten, and the file is called %#x", n.id)
	}
	if table.stats().Inodes != 2 || len(table.byKey) != 1 {
		t.Errorf("left: %+v, %d by key", table.stats(), len(table.byKey))
	}
}

// TestDescriptorWithAName: a lookup by name replaces a descriptor that came
// from a handle, for those who use it, too.
func TestDescriptorWithAName(t *testing.T) {
	table, paths := tableOf(t, 0, 1)
	fd, k := openPath(t, paths[0])
	n := table.enter(fd, k, unix.S_IFREG, true)
	if !n.fromHandle {
		t.Error("not marked")
	}
	byName, _ := openPath(t, paths[0])
	if m := table.enter(byName, k, unix.S_IFREG, false); m != n || n.fd != fd || n.fromHandle {
		t.Errorf("%+v", n)
	}
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil || keyOf(&st) != k {
		t.Errorf("the descriptor shows %+v, %v", keyOf(&st), err)
	}
	again, _ := openPath(t, paths[0])
	if table.enter(again, k, unix.S_IFREG, true); n.fromHandle {
		t.Error("marked again")
	}
	if s := table.stats(); s.Fds != 2 {
		t.Errorf("%+v", s)
	}
}

// TestShrink: the map has no more room than a fourth of what it held is worth.
func TestShrink(t *testing.T) {
	table, _ := tableOf(t, 0, 0)
	table.mu.Lock()
	defer table.unlock()
	const many = 3 * manyInodes
	for i := range many {
		table.add(-1, key{1, uint64(i)}, unix.S_IFREG)
		table.fds-- // it has none
	}
	if table.peak != many+1 {
		t.Errorf("peak %d", table.peak)
	}
	for _, n := range maps.Clone(table.byKey) {
		if n.id != fuse.FUSE_ROOT_ID {
			table.drop(n)
		}
	}
	if len(table.byID) != 1 || len(table.byKey) != 1 || table.peak >= manyInodes || table.free == nil {
		t.Errorf("%d inodes, %d by key, peak %d, %v", len(table.byID), len(table.byKey), table.peak, table.free)
	}
}

// TestReachable: a refusal that a lookup by name may cure is ESTALE, which
// makes the kernel do that.
func TestReachable(t *testing.T) {
	table, paths := tableOf(t, 0, 1)
	f := &FS{table: table, callers: &callers{privileged: true}}
	fd, k := openPath(t, paths[0])
	n := table.enter(fd, k, unix.S_IFREG, true)
	check := func(when string, err, want unix.Errno) {
		t.Helper()
		if got := status(f.reachable(n, err)); got != fuse.Status(want) {
			t.Errorf("%s: %v becomes %v, want %v", when, err, got, want)
		}
	}
	check("from a handle", unix.EACCES, unix.ESTALE)
	check("from a handle", unix.EXDEV, unix.ESTALE)
	check("from a handle", unix.EPERM, unix.EPERM)
	byName, _ := openPath(t, paths[0])
	table.enter(byName, k, unix.S_IFREG, false)
	check("looked up by name", unix.EACCES, unix.EACCES)
	n.fromHandle, f.callers.privileged = true, false
	check("an ordinary user's refusal", unix.EACCES, unix.EACCES)
}
