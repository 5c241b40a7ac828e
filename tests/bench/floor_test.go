package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// TestMain lets the test binary be the server of a column.
func TestMain(m *testing.M) {
	if os.Getenv("BENCH_AS_PROGRAM") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// What the floor is compared with is only fair if it really moves the bytes.
func TestFloorMovesBytes(t *testing.T) {
	harness.Need(t, harness.Root, harness.FUSE)
	col := mountedFloor(t)
	content := make([]byte, 3<<20+100)
	for i := range content {
		content[i] = byte(i / 97)
	}
	below, through := filepath.Join(col.backing, "data"), filepath.Join(col.at, "data")
	if err := os.WriteFile(below, content, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(through)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d bytes of %d, or others: %v", len(got), len(content), err)
	}
	f, err := os.OpenFile(through, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patch := bytes.Repeat([]byte("patch"), 1<<19)
	if _, err := f.WriteAt(patch, 12345); err != nil {
		t.Fatal(err)
	}
	copy(content[12345:], patch)
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if got, err = os.ReadFile(below); err != nil || !bytes.Equal(got, content[:3<<20]) {
		t.Errorf("below are %d bytes, or others: %v", len(got), err)
	}
	if _, err := os.Stat(filepath.Join(col.at, "nothing")); !os.IsNotExist(err) {
		t.Errorf("a name that is not there: %v", err)
	}
}

// The loads of the data cells work on the floor, by several threads. What is warm asks nothing of it.
func TestFloorServesDataCells(t *testing.T) {
	harness.Need(t, harness.Root, harness.FUSE)
	col := mountedFloor(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{self: self}
	const size = 16 << 20
	for _, jobs := range []int{1, 4} {
		if err := newFiles(col.backing, jobs, size); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cells() {
		if !c.data {
			continue
		}
		l := c.load(&content{dir: col.at, cold: true, size: size})
		if l.Cache == warm || l.Block == 128<<10 {
			continue
		}
		l.Count = min(l.Count, 64*l.Jobs)
		if _, err := b.load(t.Context(), l, col); err != nil { // by a process of its own: it closes no file
			t.Errorf("%s: %v", c.Name, err)
		}
	}
}

func newFiles(dir string, jobs int, size int64) error {
	for i := range jobs {
		if err := fillFile(dataFile(dir, jobs, i), size/int64(jobs)); err != nil {
			return err
		}
	}
	return nil
}

func mountedFloor(t *testing.T) *column {
	t.Helper()
	t.Setenv("BENCH_AS_PROGRAM", "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range columns(self, "") {
		if c.Name != floorName {
			continue
		}
		c.backing = t.TempDir()
		if err := c.mount(t.Context(), t.TempDir()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.unmount(); err != nil {
				t.Error(err)
			}
		})
		if c.Refused != "" {
			t.Fatal(c.Refused)
		}
		return c
	}
	t.Fatal("there is no floor")
	return nil
}
