package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// A scan of a simulation names no file that was removed since: a kernel has no bad sectors
// of such a file, either.
func TestSimulatedListForgetsRemovedFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: whether a file is gone is for root to find out")
	}
	dir := t.TempDir()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	below := media.New(root)
	defer below.Close()
	m, err := sim.New(sim.Options{Profile: "dax", Store: filepath.Join(t.TempDir(), "poison.jsonl"), Root: root, Below: below})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	l := simulatedList{m}
	for _, name := range []string{"left", "removed"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		id, err := fileid.Of(int(f.Fd()))
		_, write := f.Write(make([]byte, ranges.PageSize))
		_, inject := m.Inject(id, name, int(f.Fd()), ranges.Range{Len: 64}, false)
		if err := errors.Join(err, write, inject, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "removed")); err != nil {
		t.Fatal(err)
	}
	now, err := l.find(t.Context(), 1)
	if err != nil || len(now.files) != 1 || now.files[0].path != "left" {
		t.Errorf("listed: %+v, %v", now.files, err)
	}
}
