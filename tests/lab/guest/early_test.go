//go:build lab

package guest

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// TestKnownEarly puts poison under a file of a running mount: an event tells of it before
// anybody reads, with path and offset, and so does a scan. Of poison in free space
// they tell that it is there.
func TestKnownEarly(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		t.Parallel() // most of it is waiting
		path := d.fill(t, "a file", truth.Content(8*page))
		m := harness.New(t, harness.Config{Backing: d.at})
		d.poison(t, path, 11, 30)
		free := freeSector(t, d)
		d.poisonDevice(t, free)
		told := awaitDetected(t, m, 3)
		for _, off := range []int64{11 * sector, 30 * sector} {
			if !slices.ContainsFunc(told, func(e event.Event) bool {
				return e.Path == "a file" && e.Offset == off && e.Length == sector && e.Detected == "badblocks"
			}) {
				t.Errorf("no event of the sector at %d: %+v", off, told)
			}
		}
		if !slices.ContainsFunc(told, func(e event.Event) bool { return e.Path == "" && e.Offset == free*sector }) {
			t.Errorf("no event of the sector %d in free space: %+v", free, told)
		}
		for _, target := range []string{d.at, m.At} {
			checkScan(t, target, []place{
				{"file", "a file", 11 * sector, sector}, {"file", "a file", 30 * sector, sector}, {d.useOfFree(t), "", free * sector, sector},
			})
		}
		checkEvents(t, m)
	})
}

// place is what a scan says of a bad sector.
type place struct {
	Use    string `json:"use"`
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
}

// checkScan compares what a scan of the mount or of the bare directory finds.
func checkScan(t *testing.T, target string, want []place) {
	t.Helper()
	r := harness.Mendfs(t, "scan", "--json", target)
	var found struct {
		Scan []place `json:"scan"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &found); err != nil || r.Exit != 4 {
		t.Errorf("scan %s: exit %d, %v: %s%s", target, r.Exit, err, r.Stdout, r.Stderr)
	}
	byOffset := func(a, b place) int { return cmp.Compare(a.Offset, b.Offset) }
	if got := slices.SortedFunc(slices.Values(found.Scan), byOffset); !slices.Equal(got, slices.SortedFunc(slices.Values(want), byOffset)) {
		t.Errorf("scan %s: %+v, want %+v", target, got, want)
	}
}

// awaitDetected is the first n events that poison was detected. Nothing wakes the
// server here: a list that is written by hand does not notify (nd_pmem does, for
// what hardware reports), so that it is found when the list is read again.
func awaitDetected(t *testing.T, m *harness.Mount, n int) []event.Event {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		told := slices.DeleteFunc(m.Events(), func(e event.Event) bool { return e.Event != event.Detected })
		if len(told) >= n {
			return told
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d events after two minutes: %+v", len(told), n, told)
		}
	}
}

// freeSector is a sector of a file that was removed.
func freeSector(t *testing.T, d *disk) int64 {
	t.Helper()
	path := d.fill(t, "gone", truth.Content(64*page))
	at := extentsOf(t, path)[0].device / sector
	run(t, "rm", path)
	run(t, "sync")
	return at
}
