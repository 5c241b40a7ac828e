package fileid

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPathIsNeverCalledDeleted while the file lives, unless that is its name.
func TestPathIsNeverCalledDeleted(t *testing.T) {
	dir := t.TempDir()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for name, c := range map[string]struct {
		link, remove bool
		file, want   string
	}{
		"removed":                       {false, true, "a", "a"},
		"removed, with another name":    {true, true, "b", "b"},
		"not removed, and called so":    {false, false, "c (deleted)", "c (deleted)"},
		"removed, and called so before": {true, true, "d (deleted)", "d (deleted)"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(dir, c.file))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if c.link {
				err = os.Link(f.Name(), f.Name()+".link")
			}
			if c.remove {
				err = errors.Join(err, os.Remove(f.Name()))
			}
			if got := Path(root, int(f.Fd())); err != nil || got != c.want {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// places are directories of two filesystems with handles.
func places(t *testing.T, test func(t *testing.T, dir string, root int)) {
	for name, parent := range map[string]string{"disk": "", "tmpfs": "/dev/shm"} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(parent, "mendfs")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			test(t, dir, open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY))
		})
	}
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func create(t *testing.T, dir, name string) ID {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	return of(t, open(t, path, unix.O_RDWR))
}

func of(t *testing.T, fd int) ID {
	t.Helper()
	id, err := Of(fd)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// content is what Open finds.
func content(t *testing.T, root int, id ID, path string) (string, error) {
	t.Helper()
	fd, err := Open(root, id, path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 100)
	n, err := unix.Pread(fd, buf, 0)
	return string(buf[:max(n, 0)]), err
}

func TestIdentity(t *testing.T) {
	places(t, func(t *testing.T, dir string, root int) {
		id := create(t, dir, "a")
		if id.Handle == "" || id.Btime == 0 {
			t.Fatalf("%+v lacks what this filesystem has", id)
		}
		if path := of(t, open(t, filepath.Join(dir, "a"), unix.O_PATH)); path != id {
			t.Fatalf("through O_PATH %v, else %v", path, id)
		}
		if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if link := of(t, open(t, filepath.Join(dir, "link"), unix.O_RDONLY)); link != id {
			t.Fatalf("through the link %v, else %v", link, id)
		}
		if other := create(t, dir, "b"); other.Key() == id.Key() {
			t.Fatalf("two files are %v", id)
		}
		if other := of(t, root); other.Key() == id.Key() {
			t.Fatalf("file and directory are %v", id)
		}
		text, err := json.Marshal(id)
		if err != nil {
			t.Fatal(err)
		}
		var back ID
		if err := json.Unmarshal(text, &back); err != nil || back != id {
			t.Fatalf("%v came back as %v: %v", id, back, err)
		}
	})
	if _, err := Of(-1); !errors.Is(err, unix.EBADF) {
		t.Fatalf("identity of nothing: %v", err)
	}
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		name    string
		handles bool
		change  func(dir string) error
		gone    bool
	}{
		{"unchanged", true, func(string) error { return nil }, false},
		{"unchanged, by path", false, func(string) error { return nil }, false},
		{"renamed", true, rename("dir/a", "b"), false},
		{"renamed, by path", false, rename("dir/a", "b"), true},
		{"directory renamed", true, rename("dir", "other"), false},
		{"removed", true, remove("dir/a"), true},
		{"removed, by path", false, remove("dir/a"), true},
		{"replaced", true, replace, true},
		{"replaced, by path", false, replace, true},
		{"replaced by a FIFO, by path", false, func(dir string) error {
			return errors.Join(os.Remove(dir+"/dir/a"), unix.Mkfifo(dir+"/dir/a", 0o600))
		}, true},
		{"replaced by a symbolic link to itself, by path", false, func(dir string) error {
			return errors.Join(os.Rename(dir+"/dir/a", dir+"/b"), os.Symlink("../b", dir+"/dir/a"))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			places(t, func(t *testing.T, dir string, root int) {
				if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
					t.Fatal(err)
				}
				fd, err := unix.Open(filepath.Join(dir, "dir/a"), unix.O_RDWR|unix.O_CREAT, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := unix.Write(fd, []byte("content")); err != nil {
					t.Fatal(err)
				}
				id := of(t, fd)
				if !c.handles {
					id.Handle = "" // as on a filesystem without them
				}
				if err := errors.Join(unix.Close(fd), c.change(dir)); err != nil {
					t.Fatal(err)
				}
				got, err := content(t, root, id, "dir/a")
				if c.gone != errors.Is(err, ErrGone) || (!c.gone && (err != nil || got != "content")) {
					t.Fatalf("%q, %v; want gone: %v", got, err, c.gone)
				}
				if gone := Gone(root, id, "dir/a"); gone != (c.gone && c.handles) {
					t.Fatalf("gone for certain: %v", gone)
				}
			})
		})
	}
}

func rename(from, to string) func(string) error {
	return func(dir string) error { return os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)) }
}

func remove(name string) func(string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

// replace puts another file in the place of the first; ext4 gives it the same
// inode. A clock tick lies between, or the birth times would be the same too.
func replace(dir string) error {
	err := os.Remove(dir + "/dir/a")
	time.Sleep(20 * time.Millisecond)
	return errors.Join(err, os.WriteFile(dir+"/dir/a", []byte("another"), 0o600))
}

func TestOpenStaysBelowRoot(t *testing.T) {
	places(t, func(t *testing.T, dir string, _ int) {
		id := create(t, dir, "secret")
		id.Handle = ""
		if err := os.Mkdir(filepath.Join(dir, "root"), 0o700); err != nil {
			t.Fatal(err)
		}
		root := open(t, filepath.Join(dir, "root"), unix.O_PATH)
		if got, err := content(t, root, id, "../secret"); err == nil {
			t.Fatalf("outside of root: %q", got)
		}
	})
}

func TestDamagedHandle(t *testing.T) {
	places(t, func(t *testing.T, dir string, root int) {
		id := create(t, dir, "a")
		for _, handle := range []string{"x:00", "1:zz", "1:", "99999999999:00"} {
			id.Handle = handle
			if fd, err := Open(root, id, "a", unix.O_RDONLY); err == nil {
				unix.Close(fd)
				t.Errorf("handle %q opened a file", handle)
			}
		}
	})
}

func TestPath(t *testing.T) {
	places(t, func(t *testing.T, dir string, root int) {
		for _, sub := range []string{"root", "rootless"} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		inner := open(t, filepath.Join(dir, "root"), unix.O_PATH)
		for _, c := range []struct{ name, want string }{
			{"root/file", "file"},
			{"root/x (deleted)", "x (deleted)"},
			{"rootless/file", filepath.Join(dir, "rootless/file")},
		} {
			create(t, dir, c.name)
			fd := open(t, filepath.Join(dir, c.name), unix.O_PATH)
			if got := Path(inner, fd); got != c.want {
				t.Errorf("%s: %q; want %q", c.name, got, c.want)
			}
			if err := os.Remove(filepath.Join(dir, c.name)); err != nil {
				t.Fatal(err)
			}
			if got := Path(inner, fd); got != c.want {
				t.Errorf("%s, removed: %q; want %q", c.name, got, c.want)
			}
		}
		if got := Path(root, root); got != "." {
			t.Errorf("of the root itself: %q", got)
		}
		slash := open(t, "/", unix.O_PATH)
		if got := Path(slash, root); got != strings.TrimPrefix(dir, "/") {
			t.Errorf("below /: %q", got)
		}
	})
}

func TestFilesystem(t *testing.T) {
	names := map[string]bool{}
	places(t, func(t *testing.T, dir string, root int) {
		name, err := Filesystem(root)
		if err != nil || name == "" {
			t.Fatalf("%q, %v", name, err)
		}
		names[name] = true
		create(t, dir, "a")
		for what, fd := range map[string]int{
			"a file":                open(t, filepath.Join(dir, "a"), unix.O_RDONLY),
			"a directory by O_PATH": open(t, dir, unix.O_PATH),
		} {
			if got, err := Filesystem(fd); got != name || err != nil {
				t.Errorf("by %s %q, %v; want %q", what, got, err, name)
			}
		}
	})
	for name := range names {
		if !Lasting(name) {
			t.Errorf("%q does not last", name)
		}
	}
	if Lasting("dev-2a") {
		t.Error("the number of a device is said to last")
	}
	if len(names) != 2 {
		t.Fatalf("two filesystems are called %v", names)
	}
	if Short("a") == Short("b") || len(Short("a")) != 8 {
		t.Fatalf("short names %q and %q", Short("a"), Short("b"))
	}
}

// TestPathOfUnnamed opens a file by its handle that the kernel has in no directory it
// remembers, as after a reboot: it has no path, and is not the root. By the path that it
// had it is opened so that the kernel knows its name.
func TestPathOfUnnamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel's caches are for root to drop")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "sub", "f"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := Of(int(f.Fd()))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	attached := open(t, dir, unix.O_PATH|unix.O_DIRECTORY)
	alone, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Skip("open_tree: ", err)
	}
	defer unix.Close(alone)
	for name, root := range map[string]int{"attached": attached, "alone": alone} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
				t.Skip(err)
			}
			fd, err := openHandle(root, id, unix.O_PATH)
			if err != nil {
				t.Fatal(err)
			}
			got := Path(root, fd)
			_ = unix.Close(fd) // so that nobody has it without a name
			if got != "" {
				t.Errorf("by its handle: %q", got)
			}
			if got := Path(root, root); got != "." {
				t.Errorf("the root: %q", got)
			}
			if fd, err = Open(root, id, "sub/f", unix.O_RDWR); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if got := Path(root, fd); got != filepath.Join("sub", "f") {
				t.Errorf("by its path: %q", got)
			}
		})
	}
}
