package fs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnlinkedKeepsItsDescriptor: it is the only way to the file.
func TestUnlinkedKeepsItsDescriptor(t *testing.T) {
	table, paths := tableOf(t, 2, 5)
	fd, k := openPath(t, paths[0])
	n := table.enter(fd, k, unix.S_IFREG, false)
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	table.release(n)
	for _, path := range paths[1:] {
		fd, k := openPath(t, path)
		table.release(table.enter(fd, k, unix.S_IFREG, false))
	}
	if n.fd < 0 {
		t.Error("the descriptor of a file without links was closed")
	}
	if s := table.stats(); s.Inodes != 6 || s.Fds > 3 {
		t.Errorf("%+v", s)
	}
}

// TestOtherMountKeepsItsDescriptor: its handle would open a file of the root's
// filesystem.
func TestOtherMountKeepsItsDescriptor(t *testing.T) {
	table, paths := tableOf(t, 1, 1)
	if table.mount < 0 {
		t.Skip("SKIP: without CAP_DAC_READ_SEARCH no descriptor is closed early")
	}
	var inodes []*inode
	for _, path := range []string{"/proc/version", "/dev/null", paths[0]} {
		fd, k := openPath(t, path)
		n := table.enter(fd, k, unix.S_IFREG, false)
		table.release(n)
		inodes = append(inodes, n)
	}
	fd, k := openPath(t, filepath.Dir(filepath.Dir(paths[0])))
	table.release(table.enter(fd, k, unix.S_IFDIR, false))
	if inodes[0].fd < 0 || inodes[1].fd < 0 {
		t.Error("the descriptor of a file of another mount was closed")
	}
	if inodes[2].fd >= 0 {
		t.Error("no descriptor was closed: this shows nothing")
	}
}
