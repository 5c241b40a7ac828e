package truth

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// simulated is a world of the profile "dax".
type simulated struct {
	medium *sim.Medium
	file   media.File
}

func (s simulated) File() media.File { return s.file }

func (s simulated) Bad() []int64 {
	bad := ranges.Of()
	for _, injection := range s.medium.List() {
		for _, r := range injection.Remaining {
			bad.Add(r.Widen(sector))
		}
	}
	out := []int64{}
	for r := range bad.All() {
		for off := r.Off; off < r.End(); off += sector {
			out = append(out, off/sector)
		}
	}
	return out
}

// newSimulated is the world that an operation begins in.
func newSimulated(t *testing.T, o Op) simulated {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, Content(o.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	root, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(root) })
	medium, err := sim.New(sim.Options{Profile: sim.DAX, Root: root, Below: media.New(root)})
	if err != nil {
		t.Fatal(err)
	}
	id, err := fileid.Of(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range o.Bad {
		if _, err := medium.Inject(id, "file", int(f.Fd()), ranges.Between(s*sector, min((s+1)*sector, o.Size)), false); err != nil {
			t.Fatal(err)
		}
	}
	return simulated{medium, medium.Open(int(f.Fd()))}
}
