//go:build lab

package guest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// bare is a file of a filesystem, without mendfs.
type bare struct {
	t    *testing.T
	d    *disk
	path string
	file media.File
}

func (b bare) File() media.File { return b.file }
func (b bare) Bad() []int64     { return b.d.bad(b.t, b.path) }

// TestTruth tells what the filesystem does, one line for each operation; the host
// compares. At the end of a line is how much is left on the device's list,
// in the file or not.
func TestTruth(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		root, err := unix.Open(d.at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(root)
		medium := media.New(root)
		defer medium.Close()
		for _, o := range truth.Ops() {
			fmt.Printf("fact %s | %s | %s\n", d.name, o.Name, runBare(t, d, medium, o))
		}
	})
}

func runBare(t *testing.T, d *disk, medium *media.Real, o truth.Op) string {
	path := d.fill(t, "file", truth.Content(o.Size))
	d.poison(t, path, o.Bad...)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	said := o.Run(bare{t, d, path, medium.Open(int(f.Fd()))})
	said += fmt.Sprintf(" | device %d", len(d.listed(t)))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.clearDevice(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return said
}
