package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRegistryConflict(t *testing.T) {
	r, err := openRegistry(filepath.Join(t.TempDir(), "mendfs"))
	if err != nil {
		t.Fatal(err)
	}
	reg, err := r.add(entry{
		Running:  Running{Mountpoint: "/mnt/db", Backing: "/srv/db", State: "/state/db", Pid: 7},
		BackedBy: spot{"8:1", "/srv/db"}, At: spot{"8:1", "/mnt/db"}, Records: spot{"8:3", "/state/db"},
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.entries()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		backing, at spot
		state       string
		want        string // part of the refusal; "" if there is none
	}{
		"elsewhere":                        {spot{"8:1", "/srv/web"}, spot{"8:1", "/mnt/web"}, "/state/web", ""},
		"a name that only begins alike":    {spot{"8:1", "/srv/db2"}, spot{"8:1", "/mnt/db2"}, "/state/db2", ""},
		"same place of another filesystem": {spot{"8:2", "/srv/db"}, spot{"8:2", "/mnt/db"}, "/state/x", ""},
		"same backing":                     {spot{"8:1", "/srv/db"}, spot{"8:1", "/mnt/x"}, "/state/x", "already mounted"},
		"within":                           {spot{"8:1", "/srv/db/base"}, spot{"8:1", "/mnt/x"}, "/state/x", "lies within /srv/db"},
		"contains":                         {spot{"8:1", "/srv"}, spot{"8:1", "/mnt/x"}, "/state/x", "contains /srv/db"},
		"contains, at the root":            {spot{"8:1", "/"}, spot{"8:1", "/mnt/x"}, "/state/x", "contains /srv/db"},
		"mountpoint inside":                {spot{"8:1", "/srv/web"}, spot{"8:1", "/srv/db/web"}, "/state/x", "lies inside /srv/db"},
		"contains the state directory":     {spot{"8:3", "/state"}, spot{"8:1", "/mnt/web"}, "/x", "contains /state/db"},
		"same state directory":             {spot{"8:1", "/srv/web"}, spot{"8:1", "/mnt/web"}, "/state/db", "in use by the mount at /mnt/db (pid 7)"},
	} {
		t.Run(name, func(t *testing.T) {
			e := entry{Running: Running{Mountpoint: "/m", Backing: "/b", State: c.state}, BackedBy: c.backing, At: c.at, Records: spot{"8:3", c.state}}
			err := e.conflict(all, entry.whereabouts)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := reg.close(); err != nil {
		t.Fatal(err)
	}
	if all, err := r.entries(); err != nil || len(all) != 0 {
		t.Errorf("after close: %v, %v", all, err)
	}
}

func TestRegistryForgetsTheDead(t *testing.T) {
	r, err := openRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e := entry{Running: Running{Mountpoint: "/mnt/db"}}
	reg, err := r.add(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.mounted("0:99"); err != nil {
		t.Fatal(err)
	}
	if all, err := r.entries(); err != nil || len(all) != 1 || all[0].Dev != "0:99" {
		t.Fatalf("while it runs: %v, %v", all, err)
	}
	if err := reg.file.Close(); err != nil { // what the kernel does for a process that dies
		t.Fatal(err)
	}
	if all, err := r.entries(); err != nil || len(all) != 0 {
		t.Errorf("after its death: %v, %v", all, err)
	}
	if err := r.sweep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(reg.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its file was left: %v", err)
	}
	if _, err := r.add(e); err != nil {
		t.Errorf("the same mountpoint again: %v", err)
	}
}

func TestRegistryDirectoryOfOthersIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, prepare := range map[string]func(path string) error{
		"writable by others": func(path string) error { return errors.Join(os.Mkdir(path, 0o700), unix.Chmod(path, 0o777)) },
		"symbolic link":      func(path string) error { return os.Symlink(dir, path) },
		"file":               func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mendfs")
			if err := prepare(path); err != nil {
				t.Fatal(err)
			}
			if _, err := openRegistry(path); err == nil {
				t.Error("was accepted")
			}
		})
	}
}

// TestOthersCantKeepAnEntryAlive takes every lock that a descriptor for reading
// allows, which is what other users can have.
func TestOthersCantKeepAnEntryAlive(t *testing.T) {
	r, err := openRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e := entry{Running: Running{Mountpoint: "/mnt/db"}}
	reg, err := r.add(e)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.Open(reg.path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if err := writeLock(theirs); !errors.Is(err, unix.EBADF) {
		t.Errorf("a write lock without permission to write: %v", err)
	}
	if err := unix.Flock(int(theirs.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if err := reg.mounted("0:99"); err != nil { // replaces the file
		t.Fatal(err)
	}
	theirs2, err := os.Open(reg.path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs2.Close()
	if err := reg.file.Close(); err != nil { // the process dies
		t.Fatal(err)
	}
	if err := errors.Join(
		unix.Flock(int(theirs2.Fd()), unix.LOCK_EX|unix.LOCK_NB),
		unix.FcntlFlock(theirs2.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}),
	); err != nil {
		t.Fatal(err)
	}
	if all, err := r.entries(); err != nil || len(all) != 0 {
		t.Errorf("after its death: %v, %v", all, err)
	}
	if err := r.sweep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(reg.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its file was left: %v", err)
	}
	// A crash while the file was replaced leaves one that others may have open.
	if err := os.WriteFile(reg.path+".new", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	left, err := os.Open(reg.path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer left.Close()
	if err := unix.FcntlFlock(left.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		t.Fatal(err)
	}
	again, err := r.add(e)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := r.entries(); err != nil || len(all) != 1 {
		t.Errorf("after mounting again: %v, %v", all, err)
	}
	if err := again.close(); err != nil {
		t.Error(err)
	}
}
