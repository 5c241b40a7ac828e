//go:build lab

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// view is how a program sees a filesystem to which something is about to happen: with
// files open, and mapped.
type view struct {
	at     string // a directory with files of its own
	file   *os.File
	dir    *os.File
	memory []byte // of file
}

// viewFiles are in the directory of each view.
var viewFiles = []string{"file", "closed", "renamed", "removed"}

// fillViews makes the directories of two views that are to be compared.
func fillViews(t *testing.T, d *disk, content []byte) {
	t.Helper()
	for _, dir := range []string{"bare", "mounted"} {
		if err := os.Mkdir(filepath.Join(d.at, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range viewFiles {
			d.fill(t, filepath.Join(dir, name), content)
		}
	}
}

func newView(t *testing.T, at string) *view {
	t.Helper()
	v := &view{at: at}
	var err error
	if v.file, err = os.OpenFile(v.path("file"), os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	if v.dir, err = os.Open(at); err != nil {
		t.Fatal(err)
	}
	if v.memory, err = unix.Mmap(int(v.file.Fd()), 0, 8*page, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.close)
	return v
}

// close may come twice. What it meets on a filesystem in trouble is nobody's concern.
func (v *view) close() {
	if v.memory == nil {
		return
	}
	_ = unix.Munmap(v.memory)
	v.memory = nil
	_ = v.file.Close()
	_ = v.dir.Close()
}

func (v *view) path(name string) string { return filepath.Join(v.at, name) }

// asked are things that programs do. Names come first: the recovery engine has no part
// in them.
var asked = []struct {
	name string
	do   func(v *view) error
}{
	{"create", func(v *view) error { return opened(v.path("new"), os.O_CREATE|os.O_WRONLY) }},
	{"stat", func(v *view) error { return unix.Stat(v.path("closed"), new(unix.Stat_t)) }},
	{"open", func(v *view) error { return opened(v.path("closed"), os.O_RDONLY) }},
	{"open to write", func(v *view) error { return opened(v.path("closed"), os.O_RDWR) }},
	{"readdir", func(v *view) error { _, err := v.dir.ReadDir(-1); return err }},
	{"mkdir", func(v *view) error { return unix.Mkdir(v.path("newdir"), 0o755) }},
	{"rename", func(v *view) error { return unix.Rename(v.path("renamed"), v.path("other")) }},
	{"unlink", func(v *view) error { return unix.Unlink(v.path("removed")) }},
	{"statfs", func(v *view) error { return unix.Fstatfs(int(v.dir.Fd()), new(unix.Statfs_t)) }},
	{"read", func(v *view) error { _, err := v.file.ReadAt(make([]byte, page), 5*page); return err }},
	{"load of a mapping", func(v *view) error { return load(v.memory, 6*page) }},
	{"write", func(v *view) error { _, err := v.file.WriteAt([]byte("new"), 7*page); return err }},
	{"truncate", func(v *view) error { return v.file.Truncate(7 * page) }},
	{"fsync", func(v *view) error { return v.file.Sync() }},
}

func opened(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err == nil {
		err = f.Close()
	}
	return err
}

var errSIGBUS = errors.New("SIGBUS")

// load is errSIGBUS if that is what comes of it.
func load(memory []byte, at int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errSIGBUS
		}
	}()
	if memory[at] == 0 {
		return errors.New("a zero")
	}
	return nil
}

// answer is what a program got.
func answer(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errno(err) != "0":
		return errno(err)
	}
	return err.Error()
}

// besides runs a test on ext4 and on XFS at the same time. What it tells with fact is printed
// in order.
func besides(t *testing.T, test func(t *testing.T, fs filesystem, fact func(format string, args ...any))) {
	told := make([]strings.Builder, 2)
	t.Run("on", func(t *testing.T) { // ends when both have ended
		for i, fs := range filesystems[:2] {
			t.Run(fs.name, func(t *testing.T) {
				t.Parallel()
				test(t, fs, func(format string, args ...any) { fmt.Fprintf(&told[i], "fact "+format+"\n", args...) })
			})
		}
	})
	for i := range told {
		fmt.Print(told[i].String())
	}
}
