package scan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes files with names and sizes in a new directory.
func tree(t *testing.T, sizes map[string]int) string {
	t.Helper()
	root := t.TempDir()
	for name, size := range sizes {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, make([]byte, size), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// watch notes where a scan is, as "path bytes" of each file.
type watch struct {
	t     *testing.T
	bytes map[string]int64 // by path
	order []string
	last  int64
	stop  func(Progress) bool // interrupts the scan
}

// run scans root, and returns what it gave.
func (w *watch) run(root string, cursor *Cursor) error {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.bytes, w.order = map[string]int64{}, nil
	done := make(chan error)
	s := &Scan{
		Root: root, Cursor: cursor,
		Found: func(b Bad) { w.t.Errorf("found %v", b) },
		Skip:  func(path string, err error) { w.t.Errorf("skipped %q: %v", path, err) },
		At: func(p Progress) {
			if w.bytes[p.Path] += p.Bytes - w.last; !slices.Contains(w.order, p.Path) {
				w.order = append(w.order, p.Path)
			}
			w.last = p.Bytes
			if w.stop != nil && w.stop(p) {
				cancel()
			}
		},
	}
	go func() { done <- s.Run(ctx) }() // its thread ends with it
	return <-done
}

func TestScanReadsInOrder(t *testing.T) {
	root := tree(t, map[string]int{"b": 10, "a/z": 5 << 20, "a/y/x": 1, "c": 1<<20 + 1, "empty": 0})
	if err := os.Symlink("b", root+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(root+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(root+"/b", 100<<20); err != nil {
		t.Fatal(err)
	}
	w := &watch{t: t}
	if err := w.run(root, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a/y/x", "a/z", "b", "c"}; !slices.Equal(slices.DeleteFunc(w.order, func(p string) bool { return p == "empty" }), want) {
		t.Errorf("read %q, want %q", w.order, want)
	}
	if w.bytes["a/z"] != 5<<20 || w.bytes["c"] != 1<<20+1 || w.bytes["b"] > 1<<20 {
		t.Errorf("read %v, want all of a/z and c, and no hole of b", w.bytes)
	}
}

// A scan that is interrupted anywhere goes on there, and both together read all
// once.
func TestScanGoesOn(t *testing.T) {
	sizes := map[string]int{"a/1": 3 << 20, "a/2": 100, "a/b/3": 2<<20 + 5, "c": 1 << 20, "d": 4 << 20}
	root, all := tree(t, sizes), int64(0)
	for _, size := range sizes {
		all += int64(size)
	}
	for _, after := range []int64{1, 1 << 20, 3 << 20, 3<<20 + 100, 5 << 20, 6<<20 + 105, 7 << 20, 9 << 20} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cursor")
			open := func() *Cursor {
				c, err := OpenCursor(path, root, "fs")
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			w := &watch{t: t, stop: func(p Progress) bool { return p.Bytes >= after }}
			cursor := open()
			found := []string{}
			cursor.Keep(&found)
			found = append(found, "found")
			if err := w.run(root, cursor); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			first := w.bytes
			w.stop = nil
			cursor = open()
			var kept []string
			if err := cursor.Found(&kept); err != nil || !slices.Equal(kept, []string{"found"}) {
				t.Errorf("kept %q, %v", kept, err)
			}
			if err := w.run(root, cursor); err != nil {
				t.Fatal(err)
			}
			for name, size := range sizes {
				if got := first[name] + w.bytes[name]; got != int64(size) {
					t.Errorf("%s: %d and %d bytes read of %d", name, first[name], w.bytes[name], size)
				}
			}
			if w.last != all {
				t.Errorf("%d bytes in all, want %d", w.last, all)
			}
			if err := cursor.Remove(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the cursor is still there: %v", err)
			}
		})
	}
}

// What changed since is no reason to begin anew, or to miss what was not read.
func TestScanGoesOnInAnotherTree(t *testing.T) {
	root := tree(t, map[string]int{"a": 1 << 20, "c/1": 2 << 20, "c/2": 1 << 20, "d": 1 << 20})
	path := filepath.Join(t.TempDir(), "cursor")
	w := &watch{t: t, stop: func(p Progress) bool { return p.Path == "c/1" }}
	cursor, err := OpenCursor(path, root, "fs")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.run(root, cursor); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(root+"/c/1"), os.WriteFile(root+"/b", make([]byte, 100), 0o600), os.WriteFile(root+"/c/1a", make([]byte, 100), 0o600)); err != nil {
		t.Fatal(err)
	}
	if cursor, err = OpenCursor(path, root, "fs"); err != nil {
		t.Fatal(err)
	}
	w.stop = nil
	if err := w.run(root, cursor); err != nil {
		t.Fatal(err)
	}
	if want := []string{"c/1a", "c/2", "d"}; !slices.Equal(w.order, want) {
		t.Errorf("read %q, want %q", w.order, want)
	}
}

func TestOpenCursorRefusesOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cursor")
	for _, text := range []string{
		"", "{", "no cursor", `{"version":1,"target":"/a","fs":"fs"}`, `{"version":2,"target":"/b","fs":"fs"}`, `{"version":2,"target":"/a","fs":"other"}`, `{}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var other *OtherError
		if _, err := OpenCursor(path, "/a", "fs"); !errors.As(err, &other) {
			t.Errorf("%q: %v", text, err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%q was changed to %q, %v", text, now, err)
		}
	}
	if _, err := OpenCursor(filepath.Join(dir, "no", "cursor"), "/a", "fs"); err == nil {
		t.Error("a cursor that can't be written was taken")
	}
}

// Files that the user may not read are no outage, however many there are.
func TestManyFilesOfOthersAreNoOutage(t *testing.T) {
	for errno, outage := range map[error]bool{unix.EACCES: false, unix.EPERM: false, unix.EIO: true} {
		s := &Scan{Skip: func(string, error) {}}
		var err error
		for range 2 * outageAfter {
			err = errors.Join(err, s.skip("f", errno))
		}
		if errors.Is(err, ErrOutage) != outage {
			t.Errorf("%v: %v", errno, errors.Is(err, ErrOutage))
		}
	}
}

// Who may make files beside the cursor, as anybody may in /var/tmp, can't have another
// file overwritten by it.
func TestCursorFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	other, path := filepath.Join(dir, "other"), filepath.Join(dir, "cursor")
	if err := os.WriteFile(other, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, path+".new"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCursor(path, "/a", "fs"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(other); err != nil || string(text) != "precious" {
		t.Errorf("the other file is %q now, %v", text, err)
	}
	if left, err := filepath.Glob(dir + "/*"); err != nil || len(left) != 3 {
		t.Errorf("there are %q, %v", left, err)
	}
}

// The file of a cursor is always whole, and in JSON.
func TestCursorIsWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cursor")
	c, err := OpenCursor(path, "/a", "fs")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.save(Progress{Path: "x\xff/y", Bytes: 7}, 9); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !json.Valid(text) {
		t.Fatalf("%q, %v", text, err)
	}
	if c, err = OpenCursor(path, "/a", "fs"); err != nil {
		t.Fatal(err)
	}
	p, from, offset := c.start()
	if p.Path != "x\xff/y" || strings.Join(from, " ") != "x\xff y" || offset != 9 || p.Bytes != 7 || !c.Resumes() {
		t.Errorf("goes on at %q %d, %+v", from, offset, p)
	}
}

func TestSize(t *testing.T) {
	root := tree(t, map[string]int{"a": 8192, "b/c": 4096})
	if err := os.Truncate(root+"/b/c", 1<<30); err != nil {
		t.Fatal(err)
	}
	if got, err := Size(context.Background(), root); err != nil || got < 12288 || got > 1<<20 {
		t.Errorf("%d, %v, want about 12288", got, err)
	}
}
