//go:build lab

package guest

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// TestCrashInTailRepair kills the server at each step of the repair of a file's last
// page, which is longer for a moment than it was. The next mount ends it: the file
// has its size, its bytes but the lost ones, and no bad sector.
func TestCrashInTailRepair(t *testing.T) {
	steps := []failpoint.Step{
		failpoint.IntentDurable, failpoint.PagesWritten, failpoint.PagesCutBack, failpoint.PagesDurable, failpoint.IntentClosed,
	}
	for i, n := range []int64{511, 1000} { // ends in the bad sector, and behind it
		t.Run(filesystems[i].name, func(t *testing.T) {
			d := newDisk(t, filesystems[i])
			for _, step := range steps {
				t.Run(fmt.Sprintf("tail of %d, at %s", n, step), func(t *testing.T) { crashInTailRepair(t, d, n, step) })
			}
		})
	}
}

func crashInTailRepair(t *testing.T, d *disk, n int64, step failpoint.Step) {
	size := 2*page + n
	content := truth.Content(size)
	path := d.fill(t, "file", content)
	defer os.Remove(path)
	d.poison(t, path, 16)
	m := harness.New(t, harness.Config{Backing: d.at, Env: []string{"MENDFS_FAILPOINT=" + string(step) + ":1"}})
	f, err := os.OpenFile(m.Path("file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("new"), 2*page+100); err == nil {
		t.Errorf("the server did not die at %s", step)
	}
	_ = f.Close() // of a dead server
	m.Kill()
	m = harness.New(t, harness.Config{Backing: d.at, At: m.At, State: m.State})
	got, err := os.ReadFile(m.Path("file"))
	if err != nil || int64(len(got)) != size {
		t.Fatalf("after replay: %d bytes of %d: %v", len(got), size, err)
	}
	want := bytes.Clone(content)
	clear(want[2*page : min(2*page+sector, size)])
	written := bytes.Clone(want)
	copy(written[2*page+100:], "new")
	if !bytes.Equal(got, want) && !bytes.Equal(got, written) {
		t.Errorf("after replay: wrong bytes at %d", firstDifference(got, want))
	}
	checkEvents(t, m)
	m.Stop()
	below, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(below, got) {
		t.Errorf("below the mount the file has %d bytes, %v", len(below), err)
	}
	if left := d.listed(t); len(left) > 0 {
		t.Errorf("after replay, still listed: %v", left)
	}
	d.clearDevice(t)
}
