package protect

import (
	"bytes"
	"errors"
	"path/filepath"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// A real medium: btrfs, whose checksums turn flipped bytes into EIO. What the
// kernel serves fails as it does without mendfs; once the poison is known, new
// opens are served.
func TestBtrfs(t *testing.T) {
	d := harness.NewDisk(t, "btrfs", 128, "-m", "single", "-d", "single")
	data := harness.Pattern(1, 64*page)
	harness.WriteFile(t, filepath.Join(d.At, "f"), data)
	harness.WriteFile(t, filepath.Join(d.At, "sound"), harness.Pattern(2, 8*page))
	d.Flip(data[20*page:21*page], data[40*page:41*page])

	t.Run("known", func(t *testing.T) {
		m := harness.New(t, harness.Config{Backing: d.At, Flags: []string{"--protect", "known"}})
		old := open(t, m, "f", unix.O_RDONLY)
		if _, err := unix.Pread(old.fd, make([]byte, page), 20*page); !errors.Is(err, unix.EIO) {
			t.Errorf("the first touch by read: %v, want EIO", err)
		}
		if !faults(t, old, 40*page) {
			t.Error("the first touch of a mapping is no SIGBUS")
		}
		passing(t, m, 1)
		// What copy_file_range(2) reads, mendfs reads: so it gets to know.
		to := open(t, m, "copy", unix.O_CREAT|unix.O_RDWR)
		for off := int64(0); off < int64(len(data)); {
			n, err := unix.CopyFileRange(old.fd, &off, to.fd, nil, len(data), 0)
			if err != nil || n == 0 {
				t.Fatalf("copy_file_range at %d: %d, %v", off, n, err)
			}
		}
		to.close()
		if got := unprotected(m); got != "f 1" {
			t.Errorf("unprotected: %q, want %q", got, "f 1")
		}
		beside := open(t, m, "f", unix.O_RDONLY)
		beside.reads("a new open beside the old one", data, pageAt(20), pageAt(40))
		beside.close()
		old.close()
		passing(t, m, 0)
		eventually(t, "full service", func() bool {
			f := open(t, m, "f", unix.O_RDONLY)
			defer f.close()
			return m.Status().Protection.Passthrough == 0
		})
		f := open(t, m, "f", unix.O_RDONLY)
		f.maps("a mapping in full service", data, pageAt(20), pageAt(40))
		f.close()
		m.Check("f", data, pageAt(20), pageAt(40))
		m.Check("copy", data, pageAt(20), pageAt(40))
	})
	t.Run("rw", func(t *testing.T) {
		m := harness.New(t, harness.Config{Backing: d.At, Flags: []string{"--protect", "rw"}})
		f := open(t, m, "f", unix.O_RDWR)
		f.reads("read", data, pageAt(20), pageAt(40))
		if !faults(t, f, 20*page) {
			t.Error("a mapping gives no SIGBUS")
		}
		f.close()
		m.Check("f", data, pageAt(20), pageAt(40))
	})
}

// faults reports whether touching a mapping of f at off is SIGBUS.
func faults(t *testing.T, f *file, off int64) (sigbus bool) {
	t.Helper()
	b := f.mapped()
	defer unmap(t, b)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			sigbus = true
		}
	}()
	return len(bytes.Clone(b[off:off+1])) != 1 // it is read
}
