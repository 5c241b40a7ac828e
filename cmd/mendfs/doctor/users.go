package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// users is who gets at the backing's bytes by other ways than a mount of it.
type users struct {
	found   []user     // have files of the backing open or mapped
	raw     []user     // have its block device open
	exposed []exposure // mounts in other namespaces that an over-mount does not reach
	all     bool       // every process could be looked at
}

type user struct {
	pid   int
	name  string
	files int // open or mapped below the backing
}

func (u user) String() string { return fmt.Sprintf("%s (pid %d)", u.name, u.pid) }

// exposure is a mount as a process in another namespace has it.
type exposure struct {
	user user
	at   string
}

func (e exposure) String() string { return e.at + " for " + e.user.String() }

// askUsers walks the processes. One that ends meanwhile is simply not there.
func (f *facts) askUsers() {
	f.users.all = hasCapability(unix.CAP_SYS_PTRACE)
	entries, err := os.ReadDir(f.from.proc)
	if err != nil {
		f.users.all = false
		return
	}
	own, _ := os.Readlink(filepath.Join(f.from.proc, "self/ns/mnt")) // unknown: then ours is looked at, too
	spaces := map[string]bool{"": true, own: true}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		f.askProcess(filepath.Join(f.from.proc, e.Name()), pid, spaces)
	}
}

// askProcess looks at one process, and at its mount namespace if no other one
// of that was seen.
func (f *facts) askProcess(proc string, pid int, spaces map[string]bool) {
	name, _ := os.ReadFile(filepath.Join(proc, "comm")) // gone: no name
	u := user{pid: pid, name: strings.TrimSpace(string(name))}
	files := openFiles(proc)
	for path := range files {
		if within(f.path, path) {
			u.files++
		}
	}
	if u.files > 0 {
		f.users.found = append(f.users.found, u)
	}
	if slices.ContainsFunc(f.medium.device.names, func(name string) bool { return files["/dev/"+name] }) {
		f.users.raw = append(f.users.raw, u)
	}
	space, _ := os.Readlink(filepath.Join(proc, "ns/mnt")) // not ours to see: see users.all
	if spaces[space] {
		return
	}
	spaces[space] = true
	table, _ := mountTable(filepath.Join(proc, "mountinfo")) // gone, or the same
	for _, m := range alsoReaching(table, f.medium.mount, f.path) {
		if !m.follows(f.medium.mount, f.path) {
			f.users.exposed = append(f.users.exposed, exposure{u, m.at})
		}
	}
}

// openFiles is the paths of what the process has open or mapped.
func openFiles(proc string) map[string]bool {
	files := map[string]bool{}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd")) // not ours to see: see users.all
	for _, fd := range fds {
		if path, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil {
			files[path] = true
		}
	}
	maps, _ := os.ReadFile(filepath.Join(proc, "maps")) // the same
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 {
			files[strings.TrimSuffix(line[i:], "\n")] = true
		}
	}
	return files
}
