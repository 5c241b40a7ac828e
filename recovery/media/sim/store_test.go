package sim

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

func TestPoisonFollowsTheFile(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	b.inject(page, 64, false)
	file := filepath.Join(b.dir, "file")
	if err := os.Rename(file, filepath.Join(b.dir, "other")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.data, 0o600); err != nil { // same name, another inode
		t.Fatal(err)
	}
	b.restart(DAX)
	b.wantRead(0, 3*page, 3*page, nil)
	other, err := os.Open(filepath.Join(b.dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := b.m.Open(int(other.Fd())).Pread(make([]byte, 10), page); !errors.Is(err, unix.EIO) {
		t.Fatalf("read of the renamed file: %v; want EIO", err)
	}
}

// Poison sits on memory: when the blocks were given back, it is not the file's any more.
func TestWrittenBehindOurBack(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(path string, data []byte) error
		left int // injections
	}{
		{"nothing", func(string, []byte) error { return nil }, 2},
		{"touched only", func(path string, _ []byte) error { return os.Chmod(path, 0o644) }, 2},
		{"rewritten by cp", func(path string, data []byte) error {
			return os.WriteFile(path, bytes.Repeat([]byte{'n'}, len(data)), 0o600)
		}, 0},
		{"one page rewritten", func(path string, _ []byte) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(fill(page), page)
			return errors.Join(err, f.Close())
		}, 1},
		{"cut off", func(path string, _ []byte) error { return os.Truncate(path, 2*page) }, 1},
		{"removed", func(path string, _ []byte) error { return os.Remove(path) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, DAX, 3*page)
			b.inject(page, 64, false)
			b.inject(2*page, 64, true)
			root := b.m.root
			if err := b.m.Close(); err != nil {
				t.Fatal(err)
			}
			b.os.Close()
			if err := c.do(filepath.Join(b.dir, "file"), b.data); err != nil {
				t.Fatal(err)
			}
			m, err := New(Options{Profile: DAX, Store: b.store, Root: root, Below: media.New(root)})
			if err != nil {
				t.Fatal(err)
			}
			if got := m.List(); len(got) != c.left {
				t.Fatalf("left: %v; want %d", got, c.left)
			}
		})
	}
}

// A process killed between a write that ends poison and its record must not
// find the new bytes withheld.
func TestKilledBeforeTheRecord(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	b.inject(page, 64, false)
	before, err := os.ReadFile(b.store)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := b.f.Pwrite(fill(page), page, 0); n != page || err != nil {
		t.Fatalf("write = %d, %v", n, err)
	}
	if err := os.WriteFile(b.store, before, 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart(DAX)
	b.wantRead(0, 3*page, 3*page, nil)
}

// At whatever byte the store was torn, it opens, with the poison of a whole
// number of records, and goes on.
func TestTornStore(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	for i := range int64(4) {
		b.inject(i*700, 64, i%2 == 0)
	}
	text, err := os.ReadFile(b.store)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(text); cut >= 0; cut-- {
		if err := os.WriteFile(b.store, text[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := New(Options{Profile: DAX, Store: b.store, Root: b.m.root, Below: b.m.below})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		had := len(m.List())
		want := max(0, bytes.Count(text[:cut], []byte{'\n'})-1)
		if had != want {
			t.Fatalf("cut at %d: %d injections; want %d", cut, had, want)
		}
		if _, err := m.Inject(b.id, "file", int(b.os.Fd()), ranges.Range{Off: 2 * page, Len: 64}, false); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if m, err = New(Options{Profile: DAX, Store: b.store, Root: b.m.root, Below: b.m.below}); err != nil || len(m.List()) != had+1 {
			t.Fatalf("cut at %d, reopened: %v", cut, err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStoreThatCannotBeRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       error
	}{
		{"damaged in the middle", `{"op":"start","version":1}` + "\ngarbage\n" + `{"op":"remove"}` + "\n", ErrDamaged},
		{"something else", `{"hello":1}` + "\n", ErrDamaged},
		{"newer", `{"op":"start","version":2}` + "\n", ErrVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "poison.jsonl")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := New(Options{Profile: DAX, Store: path, Root: -1, Below: media.New(-1)}); !errors.Is(err, c.want) {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != c.text {
				t.Fatalf("the store was changed: %q, %v", text, err)
			}
		})
	}
}

func TestCompaction(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	kept := b.inject(2*page, 64, true)
	last := kept.ID
	for range compactAbove / 64 { // each takes more than 128 bytes
		last = b.inject(page, 64, false).ID
		if n, err := b.f.Pwrite(fill(page), page, 0); n != page || err != nil {
			t.Fatalf("write = %d, %v", n, err)
		}
	}
	text, err := os.ReadFile(b.store)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > compactAbove+1<<10 {
		t.Fatalf("%d bytes for one injection", len(text))
	}
	b.restart(DAX)
	if got := b.m.List(); !reflect.DeepEqual(got, []Injection{kept}) {
		t.Fatalf("left %+v; want %+v", got, kept)
	}
	if id := b.inject(0, 1, false).ID; id <= last {
		t.Fatalf("ID %d was given twice", id)
	}
}

func TestFullStateDisk(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	b.inject(page, 64, false)
	good := b.m.store.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	b.m.store.file = full
	if n, err := b.f.Pwrite(fill(page), page, 0); n != page || err != nil {
		t.Fatalf("I/O must go on: %d, %v", n, err)
	}
	b.m.store.file = good
	b.inject(2*page, 64, false) // writes the store anew
	b.restart(DAX)
	if got := b.poisoned(); !reflect.DeepEqual(got, []ranges.Range{{Off: 2 * page, Len: 64}}) {
		t.Fatalf("after a restart: %v", got)
	}
}
