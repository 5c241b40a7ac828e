package doctor

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// store is where the state directory is, or would be made.
type store struct {
	dir      string // or the nearest directory above it that is there
	err      error  // asking for it
	free     int64  // bytes
	write    error  // the right to write there
	together bool   // it lies on the same pmem as the backing
}

// askStore asks about the state directory, which is not touched.
func (f *facts) askStore() {
	s := &f.store
	s.dir = cmp.Or(f.state.Dir, f.state.Home)
	if s.dir == "" {
		s.err = errors.New("nobody knows where")
		return
	}
	for {
		if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) || s.dir == filepath.Dir(s.dir) {
			break
		}
		s.dir = filepath.Dir(s.dir)
	}
	var room unix.Statfs_t
	var st unix.Stat_t
	if s.err = errors.Join(unix.Statfs(s.dir, &room), unix.Stat(s.dir, &st)); s.err != nil {
		return
	}
	s.free = int64(room.Bavail) * room.Bsize
	if os.Geteuid() == 0 {
		s.free = int64(room.Bfree) * room.Bsize
	}
	s.write = unix.Faccessat(unix.AT_FDCWD, s.dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	s.together = f.sharesPmem(st.Dev)
}

// sharesPmem reports whether a filesystem lies on a pmem disk of the backing's.
func (f *facts) sharesPmem(dev uint64) bool {
	if !f.medium.device.pmem() {
		return false
	}
	other, err := pmem.Kernel{Sys: f.from.sys}.Open(dev)
	if err != nil {
		return false // it lies elsewhere
	}
	defer other.Close()
	return slices.ContainsFunc(other.Disks(), func(disk string) bool { return slices.Contains(f.medium.device.disks, disk) })
}
