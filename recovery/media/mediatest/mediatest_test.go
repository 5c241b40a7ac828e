package mediatest

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// newFile is a file of 4 pages of 'a', opened through m, in which r is bad.
func newFile(t *testing.T, m *Medium, r ranges.Range) media.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(bytes.Repeat([]byte{'a'}, 4*ranges.PageSize)); err != nil {
		t.Fatal(err)
	}
	if err := m.Bad(int(f.Fd()), r); err != nil {
		t.Fatal(err)
	}
	return m.Open(int(f.Fd()))
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name        string
		granularity int64
		off, n      int64
		want        int
		err         error
	}{
		{"pages: before", 4096, 0, 4096, 4096, nil},
		{"pages: into", 4096, 0, 8192, 4096, nil},
		{"pages: good byte of the bad page", 4096, 4096, 1, 0, unix.EIO},
		{"pages: behind", 4096, 8192, 9000, 8192, nil},
		{"lines: into", 64, 0, 8192, 5056, nil},
		{"lines: at", 64, 5119, 1, 0, unix.EIO},
		{"lines: behind", 64, 5120, 1, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFile(t, New(c.granularity), ranges.Range{Off: 5060, Len: 1})
			buf := make([]byte, c.n)
			n, err := f.Pread(buf, c.off)
			if n != c.want || !errors.Is(err, c.err) {
				t.Fatalf("pread = %d, %v; want %d, %v", n, err, c.want, c.err)
			}
			for i, b := range buf {
				if good := i < n; (b == 'a') != good || (b == Garbage) == good {
					t.Fatalf("byte %d of %d read is %#x", i, n, b)
				}
			}
		})
	}
}

func TestWrite(t *testing.T) {
	for _, c := range []struct {
		name   string
		off, n int64
		refuse error
		want   int
		err    error
		left   int
	}{
		{"whole page", 4096, 4096, nil, 4096, nil, 0},
		{"page and more", 0, 16384, nil, 16384, nil, 0},
		{"part of it", 4096, 4095, nil, 0, unix.EIO, 1},
		{"up to a part of it", 0, 8191, nil, 4096, nil, 1},
		{"elsewhere", 0, 100, nil, 100, nil, 1},
		{"refused", 4096, 4096, unix.EFAULT, 0, unix.EFAULT, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := New(64)
			f := newFile(t, m, ranges.Range{Off: 5056, Len: 64})
			m.Refuse(c.refuse)
			n, err := f.Pwrite(bytes.Repeat([]byte{'b'}, int(c.n)), c.off, 0)
			if n != c.want || !errors.Is(err, c.err) {
				t.Fatalf("pwrite = %d, %v; want %d, %v", n, err, c.want, c.err)
			}
			if left, err := m.Left(f.Fd()); err != nil || len(left) != c.left {
				t.Fatalf("left bad: %v, %v; want %d", left, err, c.left)
			}
		})
	}
}

func TestOutageAndCounts(t *testing.T) {
	m := New(4096)
	f := newFile(t, m, ranges.Range{})
	m.SetOutage(unix.ENODEV)
	if _, err := f.Pread(make([]byte, 1), 0); !errors.Is(err, unix.ENODEV) {
		t.Fatalf("pread during the outage: %v", err)
	}
	if err := f.Control(nil); !errors.Is(err, unix.ENODEV) {
		t.Fatalf("control during the outage: %v", err)
	}
	m.SetOutage(nil)
	if err := f.Control(nil); err != nil {
		t.Fatalf("control after the outage: %v", err)
	}
	if c := m.Counts(); c[Pread] != 1 || c[Control] != 2 {
		t.Fatalf("counts: %v", c)
	}
}
