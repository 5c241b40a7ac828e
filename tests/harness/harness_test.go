package harness

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What the other tests stand on: a page of btrfs with a wrong checksum can't
// be read, is refused a write of a part of it, and is cured by a whole one.
func TestFlippedPageOfBtrfsActsAsPoison(t *testing.T) {
	d := NewDisk(t, "btrfs", 128, "-m", "single", "-d", "single")
	data := Pattern(1, 8*Page)
	path := filepath.Join(d.At, "f")
	WriteFile(t, path, data)
	d.Flip(data[3*Page : 4*Page])

	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, Page)
	for i := range int64(8) {
		_, err := f.ReadAt(page, i*Page)
		if bad := i == 3; bad != errors.Is(err, unix.EIO) {
			t.Errorf("reading page %d: %v", i, err)
		}
	}
	if _, err := f.WriteAt(data[:Line], 3*Page); !errors.Is(err, unix.EIO) {
		t.Errorf("writing a part of the page: %v, want EIO", err)
	}
	if _, err := f.WriteAt(data[3*Page:4*Page], 3*Page); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	Compare(t, "f", got, data)
}

// What the outage tests stand on: both ways give EIO to reads that are not
// in the page cache.
func TestOutagesGiveEIO(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for name, strike := range map[string]func(*Disk){"shutdown": (*Disk).ShutDown, "device": (*Disk).Fail} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				d := NewFailingDisk(t, kind, 320)
				path := filepath.Join(d.At, "f")
				WriteFile(t, path, Pattern(1, 64*Page))
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
					t.Fatal(err)
				}
				strike(d)
				if _, err := f.ReadAt(make([]byte, Page), 5*Page); !errors.Is(err, unix.EIO) {
					t.Errorf("reading: %v, want EIO", err)
				}
			})
		}
	}
}

// What the tests on bad media stand on.
func TestBadMedia(t *testing.T) {
	type read struct {
		off, n int64
		got    int
		err    error
	}
	tests := []struct {
		name  string
		flags []string
		reads []read
	}{
		{"lines", []string{"-unit", "64"}, []read{
			{8192, 4096, 128, nil}, {8320, 1, 0, unix.EIO}, {8384, 4096, 4096, nil},
		}},
		{"pages", []string{"-unit", "4096"}, []read{
			{4096, 8192, 4096, nil}, {8192, 64, 0, unix.EIO}, {12287, 1, 0, unix.EIO}, {12288, 4096, 4096, nil},
		}},
		{"cached", []string{"-cached"}, []read{
			{4096, 4096, 4096, nil}, {8192, 64, 0, unix.EIO}, {12288, 4096, 4096, nil},
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := NewBadMedia(t, test.flags...)
			data := b.File("f", 1, 8*Page)
			b.Bad("f", Range{Off: 8320, Len: 1})
			f, err := os.OpenFile(filepath.Join(b.At, "f"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for _, r := range test.reads {
				n, err := unix.Pread(int(f.Fd()), make([]byte, r.n), r.off)
				if max(n, 0) != r.got || !errors.Is(err, r.err) {
					t.Errorf("reading %d bytes at %d: %d, %v, want %d, %v", r.n, r.off, n, err, r.got, r.err)
				}
			}
			if _, err := f.WriteAt(data[:Line], 2*Page); !errors.Is(err, unix.EIO) {
				t.Errorf("writing a part of the page: %v, want EIO", err)
			}
			b.Outage(true)
			if _, err := f.ReadAt(make([]byte, 1), 5*Page); !errors.Is(err, unix.EIO) && test.name != "cached" {
				t.Errorf("reading in an outage: %v, want EIO", err)
			}
			b.Outage(false)
			if _, err := f.WriteAt(data[2*Page:3*Page], 2*Page); err != nil {
				t.Error(err)
			}
			if left := b.Left("f"); !left.Empty() {
				t.Errorf("still bad: %v", left)
			}
			got, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			Compare(t, "f", got, data)
		})
	}
}

func TestMain(m *testing.M) { Main(m) }
