//go:build lab

package guest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// freeings are the ways to free the second page of a file, which has four.
var freeings = []struct {
	name string
	free func(path, other string) error
}{
	{"unlink", func(path, _ string) error { return os.Remove(path) }},
	{"rename over it", func(path, other string) error { return os.Rename(other, path) }},
	{"truncate", func(path, _ string) error { return os.Truncate(path, page) }},
	{"O_TRUNC", func(path, _ string) error { return os.WriteFile(path, nil, 0o600) }},
	{"punch hole", fallocated(unix.FALLOC_FL_PUNCH_HOLE)},
	{"zero range", fallocated(unix.FALLOC_FL_ZERO_RANGE)},
}

func fallocated(mode uint32) func(path, other string) error {
	return func(path, _ string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fallocate(int(f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, page, page)
	}
}

// TestSilentAdditionIsNotFreed frees a page on XFS right after a sector of it was listed,
// which the kernel did not announce. It is cleared first: once it is free nobody can, and
// where the device can't, either, XFS shuts down (TestFreedMineShutsXFSDown).
func TestSilentAdditionIsNotFreed(t *testing.T) {
	for _, fs := range filesystems[1:] {
		t.Run(fs.name, func(t *testing.T) {
			d := newDisk(t, fs)
			m := harness.New(t, harness.Config{Backing: d.at})
			for _, f := range freeings {
				d.fill(t, "other", nil)
				path := d.fill(t, "file", truth.Content(4*page))
				d.poison(t, path, 11)
				if err := f.free(m.Path("file"), m.Path("other")); err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
				if left := d.listed(t); len(left) > 0 {
					t.Errorf("%s: %v was freed as it was", f.name, left)
				}
				d.clearDevice(t)
			}
			checkEvents(t, m)
		})
	}
}
