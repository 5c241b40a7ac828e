package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// users is the processes that use files of the backing by its own path.
type users struct {
	found []user
	all   bool // every process could be looked at
}

type user struct {
	pid   int
	name  string
	files int // open or mapped below the backing
}

func (u user) String() string { return fmt.Sprintf("%s (pid %d)", u.name, u.pid) }

// askUsers walks /proc. A process that ends meanwhile is simply not there.
func (f *facts) askUsers() {
	f.users.all = hasCapability(unix.CAP_SYS_PTRACE)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		f.users.all = false
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		if files := openBelow(proc, f.path); files > 0 {
			name, _ := os.ReadFile(filepath.Join(proc, "comm")) // gone: no name
			f.users.found = append(f.users.found, user{pid, strings.TrimSpace(string(name)), files})
		}
	}
}

// openBelow counts the files below dir that the process has open or mapped.
func openBelow(proc, dir string) int {
	files := map[string]bool{}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd")) // not ours to see: see users.all
	for _, fd := range fds {
		if path, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil && within(dir, path) {
			files[path] = true
		}
	}
	maps, _ := os.ReadFile(filepath.Join(proc, "maps")) // the same
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 && within(dir, strings.TrimSuffix(line[i:], "\n")) {
			files[strings.TrimSuffix(line[i:], "\n")] = true
		}
	}
	return len(files)
}
