package mount

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// FSType is the type under which the kernel lists our mounts.
const FSType = "fuse." + fsName

const fsName = "mendfs"

// mountEntry is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	ID         int
	Parent     int    // the ID of the mount that this one covers a directory of
	Dev        string // "major:minor" of the superblock
	Root       string // the directory of that filesystem which is mounted
	Mountpoint string
	Options    []string // of the mount, not of the filesystem
	Type       string
	Source     string
	Super      []string // options of the filesystem
}

// mounts is the mount table of this process, later mounts last.
func mounts() ([]mountEntry, error) { return mountsOf("self") }

// mountsOf is the mount table of a process, by its number or "self".
func mountsOf(process string) ([]mountEntry, error) {
	text, err := os.ReadFile("/proc/" + process + "/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(string(text))
}

// isReadOnlyNow reports whether the mount is read-only by a remount (mount -o remount,ro,
// also with bind), of which the kernel tells no filesystem. It is true if that can't be found out.
func (m *Mount) isReadOnlyNow() bool {
	all, err := mounts()
	return err != nil || slices.ContainsFunc(all, func(e mountEntry) bool {
		return e.Dev == m.entry.Dev && e.Type == FSType &&
			(slices.Contains(e.Super, "ro") || e.Mountpoint == m.path && slices.Contains(e.Options, "ro"))
	})
}

func parseMountinfo(text string) ([]mountEntry, error) {
	var all []mountEntry
	for line := range strings.Lines(text) {
		e, err := parseMountLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("mountinfo, line %q: %w", line, err)
		}
		all = append(all, e)
	}
	return all, nil
}

// parseMountLine reads "ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAG...] - TYPE SOURCE SUPEROPTIONS".
func parseMountLine(line string) (mountEntry, error) {
	mount, super, found := strings.Cut(line, " - ")
	m, s := strings.Split(mount, " "), strings.Split(super, " ")
	if !found || len(m) < 6 || len(s) < 2 {
		return mountEntry{}, fmt.Errorf("too few fields")
	}
	id, err := strconv.Atoi(m[0])
	if err != nil {
		return mountEntry{}, err
	}
	parent, err := strconv.Atoi(m[1])
	if err != nil {
		return mountEntry{}, err
	}
	return mountEntry{
		ID:         id,
		Parent:     parent,
		Dev:        m[2],
		Root:       unescapeMount(m[3]),
		Mountpoint: unescapeMount(m[4]),
		Options:    strings.Split(m[5], ","),
		Type:       s[0],
		Source:     unescapeMount(s[1]),
		Super:      strings.Split(strings.Join(s[2:], ""), ","),
	}, nil
}

// unescapeMount undoes the kernel's \ooo for space, tab, newline, backslash
// and #.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
