package state

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

// TestNamesAfterReboot has poison in files that the kernel has not looked up since their
// filesystem was mounted, one of them renamed meanwhile: a scan, events and the ledger
// name them, and a scan of their directory does not call it clean.
func TestNamesAfterReboot(t *testing.T) {
	d := harness.NewDisk(t, "ext4", 32)
	m := harness.New(t, harness.Config{Backing: mkdir(t, d.At, "b"), Flags: []string{"--simulate", "dax"}})
	for _, dir := range []string{"sub", "other"} {
		mkdir(t, m.At, dir)
	}
	for i, name := range []string{"sub/f1", "sub/f2"} {
		m.File(name, uint64(i), 3*page)
		m.Inject(name, rng{Off: page, Len: 64})
	}
	m.Stop()
	if err := os.Rename(m.Below("sub/f2"), m.Below("other/g")); err != nil {
		t.Fatal(err)
	}
	reboot := func(flags ...string) {
		d.Unmount()
		d.Mount()
		m.StartWith(flags...)
	}
	reboot("--simulate", "dax")
	want := func(path string, files ...string) {
		t.Helper()
		if got := scanned(t, m.Path(path)); !slices.Equal(got, files) {
			t.Errorf("scan %s: %q, want %q", path, got, files)
		}
	}
	want("sub", "sub/f1")
	want("other", "other/g")
	want("other/g", "other/g")
	want(".", "other/g", "sub/f1")
	seen := len(m.Events())
	m.Stop()
	reboot("--simulate", "dax", "--repair", "eager")
	for len(m.Lost(".")) < 2 || m.Poison("sub/f1").Count()+m.Poison("other/g").Count() > 0 {
	}
	for _, ev := range m.Events()[seen:] {
		if name := ev.Path; name != "sub/f1" && name != "other/g" && slices.Contains([]event.Kind{event.Detected, event.Lost, event.Reinitialized}, ev.Event) {
			t.Errorf("%s of %q", ev.Event, name)
		}
	}
	for _, row := range m.Lost(".") {
		if row.Path != "sub/f1" && row.Path != "other/g" {
			t.Errorf("the ledger has %q", row.Path)
		}
	}
}

// scanned is the files that a scan finds poison in.
func scanned(t *testing.T, path string) (files []string) {
	t.Helper()
	r := harness.Mendfs(t, "scan", "--json", path)
	var answer struct{ Scan []control.Place }
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || r.Exit != 4 {
		t.Fatal(errors.Join(err, errors.New(r.Stdout+r.Stderr)))
	}
	for _, p := range answer.Scan {
		files = append(files, filepath.Clean(p.Name()))
	}
	return files
}
