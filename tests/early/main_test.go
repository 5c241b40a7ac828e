// Package early shows that poison is told of, found by mendfs scan, and with
// --repair eager cleared, before anybody reads it; and that the last does no harm
// to programs that use the files meanwhile. Simulated poison that is known is what
// the kernel's list is on real memory (tests/lab).
package early

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector
)

type rng = harness.Range

func TestMain(m *testing.M) { harness.Main(m) }

func sectorAt(off int64) rng { return rng{Off: off, Len: sector} }

// eventually waits for what mendfs does by itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after a minute: %s", what)
		}
	}
}

// told is the events of a kind, as "path [off +len)".
func told(m *harness.Mount, kind event.Kind) []string {
	var out []string
	for _, e := range m.Events() {
		if e.Event == kind {
			out = append(out, fmt.Sprintf("%s %v", e.Path, rng{Off: e.Offset, Len: e.Length}))
		}
	}
	return out
}

func wants(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// scan is what mendfs scan has found, as "use path [off +len)", and its exit code.
func scan(t *testing.T, args ...string) (places []string, exit int) {
	t.Helper()
	r := harness.Mendfs(t, append([]string{"scan", "--json"}, args...)...)
	var answer struct {
		Version int
		Scan    []control.Place
	}
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || answer.Version != 1 {
		t.Fatalf("mendfs scan %v: exit %d, %v: %s%s", args, r.Exit, err, r.Stdout, r.Stderr)
	}
	for _, p := range answer.Scan {
		places = append(places, fmt.Sprintf("%s %s %v", p.Use, p.Name(), p.Range))
	}
	return places, r.Exit
}
