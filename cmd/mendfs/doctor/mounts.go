package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mountLine is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
	id             uint64
	dev, root, at  string
	options        []string
	peers          []string // "shared:N" and "master:N": where mounts made in it appear, and come from
	fstype, source string
	super          []string // options of the filesystem
}

func (m mountLine) String() string { return m.at }

// mountTable reads a mountinfo file.
func mountTable(path string) ([]mountLine, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var table []mountLine
	for line := range strings.Lines(string(text)) {
		m, err := parseMountLine(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, line, err)
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
		peers: l[6:], fstype: r[0], source: unescape(r[1]),
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

// follows reports whether what is mounted over path, which lies in own, appears
// in m as well (mount_namespaces(7), shared subtrees).
func (m mountLine) follows(own mountLine, path string) bool {
	rel, err := filepath.Rel(own.at, path)
	if err != nil || !within(m.root, filepath.Join(own.root, rel)) {
		return false
	}
	for _, peer := range own.peers {
		if group, ok := strings.CutPrefix(peer, "shared:"); ok {
			return slices.Contains(m.peers, peer) || slices.Contains(m.peers, "master:"+group)
		}
	}
	return false
}

// within reports whether path is dir or lies below it; both are clean.
func within(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
