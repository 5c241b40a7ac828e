//go:build lab

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// TestMended runs the list of operations through mendfs. Each has to come to what
// it comes to on a file without poison that has zeros in place of the lost
// sectors. What is left on the kernel's list is a fact, for the host to compare.
func TestMended(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		m := harness.New(t, harness.Config{Backing: d.at})
		bareRoot, mountRoot := rootMedium(t, d.at), rootMedium(t, m.At)
		for _, o := range truth.Ops() {
			want := runHealthy(t, d, bareRoot, o)
			got, left := runMended(t, d, m, mountRoot, o)
			if got != want {
				t.Errorf("%s:\n  mounted %s\n  healthy %s", o.Name, got, want)
			}
			if d.name != "ext4" || !goesByWhatIsKnown.MatchString(o.Name) {
				fmt.Printf("fact mendfs on %s | %s | left %v\n", d.name, o.Name, left)
			}
			mapsNothingOf(t, m)
		}
		checkEvents(t, m)
	})
}

// goesByWhatIsKnown matches the operations that clear, on ext4, what mendfs already knows
// to be listed. The kernel does not announce what is written to the file badblocks, so that
// it depends on when mendfs last looked by itself. On XFS it looks each time.
var goesByWhatIsKnown = regexp.MustCompile("zero|punch|truncate|fallocate|page after|past the end")

func rootMedium(t *testing.T, dir string) *media.Real {
	t.Helper()
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	medium := media.New(root)
	t.Cleanup(func() {
		medium.Close()
		unix.Close(root)
	})
	return medium
}

// result is what came of an operation, without what is left on the list.
func result(said string) string { return said[:strings.LastIndex(said, " | bad")] }

// runHealthy is the operation on a file without poison, with zeros in place of
// the bad sectors.
func runHealthy(t *testing.T, d *disk, medium *media.Real, o truth.Op) string {
	content := truth.Content(o.Size)
	for _, s := range o.Bad {
		clear(content[s*sector : min((s+1)*sector, o.Size)])
	}
	path := d.fill(t, "healthy", content)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return result(o.Run(bare{t, d, path, medium.Open(int(f.Fd()))}))
}

// runMended is the operation through the mount, and what is left on the
// list: below the file, and in all.
func runMended(t *testing.T, d *disk, m *harness.Mount, medium *media.Real, o truth.Op) (said string, left string) {
	path := d.fill(t, "file", truth.Content(o.Size))
	d.poison(t, path, o.Bad...)
	f, err := os.OpenFile(m.Path("file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	said = result(o.Run(bare{t, d, path, medium.Open(int(f.Fd()))}))
	left = fmt.Sprintf("%v device %d", d.bad(t, path), len(d.listed(t)))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.Path("file")); err != nil {
		t.Errorf("%s: then unlink: %v", o.Name, err)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	d.clearDevice(t)
	return said, left
}

// mapsNothingOf checks that the server has no file of the backing directory in its
// address space: the kernel would copy from such memory without a safe copy, and die
// of latent poison.
func mapsNothingOf(t *testing.T, m *harness.Mount) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if at := filepath.Clean(m.Backing) + "/"; strings.Contains(string(text), at) || strings.Contains(string(text), "/dev/pmem") {
		t.Errorf("the server maps persistent memory:\n%s", text)
	}
}

// checkEvents fails on an event of a repair that failed or of trouble that is none.
func checkEvents(t *testing.T, m *harness.Mount) {
	t.Helper()
	never := []event.Kind{event.RepairFailed, event.Outage, event.Conflict, event.MetadataError, event.Dropped}
	for _, e := range m.Events() {
		if slices.Contains(never, e.Event) {
			t.Errorf("an event that should not be: %+v", e)
		}
	}
}
