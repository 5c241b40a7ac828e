package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// medium is what lies below the backing directory.
type medium struct {
	name    string // of the filesystem, the same after a reboot
	mount   mountLine
	others  []mountLine // mounts by which the backing's files are reached too
	fileDAX answer      // STATX_ATTR_DAX of a file in the directory
	device  device
}

// daxOption is the mount's dax option: "", "always", "never", "inode".
func (m medium) daxOption() string {
	for _, o := range m.mount.super {
		if o == "dax" {
			return "always"
		}
		if value, ok := strings.CutPrefix(o, "dax="); ok {
			return value
		}
	}
	return ""
}

// isDAX reports whether files in the directory bypass the page cache, as far
// as it can be told: a file's attribute is the truth, and mount option with
// queue/dax is the next best (xfs falls back to dax=never without a word, but
// then says so in mountinfo).
func (f *facts) isDAX() answer {
	m := f.medium
	switch {
	case m.fileDAX != unknown:
		return m.fileDAX
	case f.scratch.dax != unknown:
		return f.scratch.dax
	case m.device.dax == no || m.daxOption() == "never":
		return no
	case m.daxOption() == "always":
		return m.device.dax
	}
	return unknown
}

func (f *facts) askMedium(dir int) error {
	m := &f.medium
	var st unix.Statx_t
	if err := unix.Statx(dir, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	var err error
	if m.name, err = fileid.Filesystem(dir); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	table, err := mountTable(filepath.Join(f.from.proc, "self/mountinfo"))
	if err != nil {
		return err
	}
	for _, line := range table {
		if line.id == st.Mnt_id {
			m.mount = line
		}
	}
	m.others = alsoReaching(table, m.mount, f.path)
	m.fileDAX = askFileDAX(dir)
	f.askDevice()
	return nil
}

// askFileDAX looks at the first regular file of the directory: a directory's
// own attribute says nothing. Listing needs O_NOATIME, since doctor changes
// nothing; without the right to it the answer is unknown.
func askFileDAX(dir int) answer {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return unknown
	}
	list := os.NewFile(uintptr(fd), "backing")
	defer list.Close()
	entries, err := list.ReadDir(1000) // a file among the first thousand, or we don't know
	if err != nil && len(entries) == 0 {
		return unknown
	}
	i := slices.IndexFunc(entries, func(e os.DirEntry) bool { return e.Type().IsRegular() })
	if i < 0 {
		return unknown
	}
	return daxAttribute(fd, entries[i].Name(), unix.AT_SYMLINK_NOFOLLOW)
}
