package recover

import (
	"fmt"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// Whatever is done to a file, in any order: a byte is what was last written,
// or zero and in the ledger, and then it is one that the poison hit.
func TestStorm(t *testing.T) {
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		for seed := range uint64(4) {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				name := fmt.Sprint("f", seed)
				s := harness.NewStorm(t, m, name, seed, func(r rng) rng {
					m.Inject(name, r)
					return lost(r)
				})
				s.Rage(60)
			})
		}
	})
}
