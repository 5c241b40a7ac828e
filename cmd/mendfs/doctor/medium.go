package doctor

import (
	"errors"
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
	name      string // of the filesystem, the same after a reboot
	mount     mountLine
	others    []mountLine // mounts by which the backing's files are reached too
	fileDAX   answer      // STATX_ATTR_DAX of a file in the directory
	queueDAX  answer      // the device's queue/dax
	device    string      // /dev path; "" if it is not a block device
	pmem      bool
	badblocks error // reading the list; nil on pmem where it can be read
	listed    int   // entries in it
	raw       error // opening the device for reading and writing
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
func (m medium) isDAX() answer {
	switch {
	case m.fileDAX != unknown:
		return m.fileDAX
	case m.queueDAX == no || m.daxOption() == "never":
		return no
	case m.daxOption() == "always":
		return m.queueDAX
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
	table, err := mountTable()
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
	m.askDevice()
	return nil
}

// askDevice asks sysfs about the block device, for a partition about its disk.
func (m *medium) askDevice() {
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + m.mount.dev)
	if err != nil {
		return // no block device: tmpfs, btrfs, NFS, FUSE
	}
	m.device = "/dev/" + filepath.Base(sys)
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		sys = filepath.Dir(sys)
	}
	m.pmem = strings.HasPrefix(filepath.Base(sys), "pmem")
	if text, err := os.ReadFile(filepath.Join(sys, "queue/dax")); err == nil {
		m.queueDAX = answerOf(strings.TrimSpace(string(text)) == "1")
	}
	if m.pmem {
		text, err := os.ReadFile(filepath.Join(sys, "badblocks"))
		m.badblocks, m.listed = err, strings.Count(string(text), "\n")
	}
	m.raw = unix.Faccessat(unix.AT_FDCWD, m.device, unix.R_OK|unix.W_OK, unix.AT_EACCESS)
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
	var st unix.Statx_t
	err = unix.Statx(fd, entries[i].Name(), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	if err != nil || st.Attributes_mask&unix.STATX_ATTR_DAX == 0 {
		return unknown
	}
	return answerOf(st.Attributes&unix.STATX_ATTR_DAX != 0)
}

// mountLine is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
	id             uint64
	dev, root, at  string
	options        []string
	fstype, source string
	super          []string // options of the filesystem
}

func mountTable() ([]mountLine, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var table []mountLine
	for line := range strings.Lines(string(text)) {
		m, err := parseMountLine(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("/proc/self/mountinfo: %q: %w", line, err)
		}
		table = append(table, m)
	}
	return table, nil
}

var errFields = errors.New("too few fields")

func parseMountLine(line string) (mountLine, error) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 6 || len(r) < 2 {
		return mountLine{}, errFields
	}
	m := mountLine{
		dev: l[2], root: unescape(l[3]), at: unescape(l[4]), options: strings.Split(l[5], ","),
		fstype: r[0], source: unescape(r[1]),
	}
	if len(r) > 2 {
		m.super = strings.Split(r[2], ",")
	}
	_, err := fmt.Sscan(l[0], &m.id)
	return m, err
}

// unescape undoes the kernel's writing of the four characters that would break
// a line into fields.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// alsoReaching is the other mounts of the same filesystem in which the backing,
// or a part of it, is seen.
func alsoReaching(table []mountLine, own mountLine, path string) []mountLine {
	rel, err := filepath.Rel(own.at, path)
	if err != nil {
		return nil
	}
	inner := filepath.Join(own.root, rel)
	var others []mountLine
	for _, m := range table {
		if m.id != own.id && m.dev == own.dev && (within(m.root, inner) || within(inner, m.root)) {
			others = append(others, m)
		}
	}
	return others
}

// within reports whether path is dir or lies below it; both are clean.
func within(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
