// Package soak does random operations on a mount, in several processes, under
// random poison, over remounts and kills, and wants every byte to be what was
// last written, or zero and in the ledger.
//
// Each worker has files of its own and knows them byte by byte; the same
// operations are done on the bare filesystem, which says what errno, size and
// number of links are right, and keeps the oracle honest. Other processes share
// files whose lines tell what they are.
//
// By hand it runs for long: make soak SEED= OPS=. The log of a worker that failed
// can be played again, and shortened:
//
//	MENDFS_SOAK_REPLAY=LOG [MENDFS_SOAK_SHRINK=1] go test -run TestReplay -v ./tests/soak
package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

var profiles = []string{"dax", "line", "dax-5.18"}

// slice is how many operations a run in CI has, for each profile and seed: about ten
// seconds' worth on two cores, with the race detector.
const slice = 12000

// TestSoak is a slice of the soak, with a fixed seed and another one; with
// MENDFS_SOAK_OPS it is all of it, with the one seed MENDFS_SOAK_SEED, on the profile
// MENDFS_SOAK_PROFILE or all.
func TestSoak(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	if text := os.Getenv("MENDFS_SOAK_OPS"); text != "" {
		soakAll(t, number(t, text), uint64(number(t, os.Getenv("MENDFS_SOAK_SEED"))))
		return
	}
	for _, seed := range []uint64{1, uint64(rand.Uint32())} {
		for _, profile := range profiles {
			t.Run(fmt.Sprint(profile, " seed ", seed), func(t *testing.T) {
				t.Logf("seed %d", seed)
				newSoak(t, profile, seed, slice).rage(2)
			})
		}
	}
}

// soakAll divides the operations among the profiles, in turns.
func soakAll(t *testing.T, ops int, seed uint64) {
	const turn = 100_000 // with a fresh mount
	fmt.Printf("soak: seed %d, %d operations\n", seed, ops)
	profiles := profiles
	if only := os.Getenv("MENDFS_SOAK_PROFILE"); only != "" {
		profiles = []string{only}
	}
	for n := 0; ops > 0 && !t.Failed(); n++ {
		profile := profiles[n%len(profiles)]
		now := min(ops, turn)
		ops -= now
		t.Run(fmt.Sprint(n, " ", profile), func(t *testing.T) {
			s := newSoak(t, profile, seed+uint64(n), now)
			s.progress = true
			s.rage(6)
		})
	}
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%q is no number", text)
	}
	return n
}
