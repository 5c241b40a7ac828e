// Package recover shows through a real mount, with programs that people use,
// that reads recover and overwrites cure (promises P1, P3, P5).
package recover

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector
	line   = harness.Line
)

type rng = harness.Range

func TestMain(m *testing.M) { harness.Main(m) }

// profiles are the simulated kernels, with what they let be lost at least
// around a poisoned byte once it is known: a kernel lists sectors.
var profiles = map[string]int64{"dax": sector, "dax-5.18": sector, "line": line}

// eachProfile runs a test on a fresh mount of each profile. lost is the range
// that is lost if the given one is known to be poisoned.
func eachProfile(t *testing.T, test func(t *testing.T, m *harness.Mount, lost func(rng) rng)) {
	for profile, unit := range profiles {
		t.Run(profile, func(t *testing.T) {
			t.Parallel()
			test(t, harness.Simulated(t, profile), func(r rng) rng { return r.Widen(unit) })
		})
	}
}

// outside is a path that is not in a mount, with the content given.
func outside(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(harness.Dir(t), "file")
	harness.WriteFile(t, path, content)
	return path
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// zeroed is data with zeros in the ranges.
func zeroed(data []byte, rs ...rng) []byte {
	for _, r := range rs {
		data = harness.Lay(data, make([]byte, r.Len), r.Off)
	}
	return data
}
