package ledger

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
)

// Rows that are on disk hold no room that they grew into, in whatever order they
// came: of a file that is read ahead they don't come in order.
func TestRowsAtRestArePacked(t *testing.T) {
	const rows = 1000
	seed := rand.Uint64()
	for name, order := range map[string][]int{
		"in order":  slices.Sorted(slices.Values(rand.Perm(rows))),
		"backwards": slices.SortedFunc(slices.Values(rand.Perm(rows)), func(a, b int) int { return b - a }),
		"at random": rand.New(rand.NewPCG(seed, 0)).Perm(rows),
	} {
		l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
		for _, n := range order {
			if err := l.Record(lose(int64(2*n)*64, 64)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		if lost, _, err := l.Live(testFile.Key()); err != nil || lost.Count() != rows || lost.Bytes() != rows*64 {
			t.Errorf("%s (seed %d): %d ranges of %d bytes, %v", name, seed, lost.Count(), lost.Bytes(), err)
		}
		room := 0
		for _, chunk := range l.files[testFile.Key()].rows.chunks {
			room += cap(chunk)
		}
		if room > rows+rows/8 {
			t.Errorf("%s (seed %d): room for %d rows, and there are %d", name, seed, room, rows)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRowThatChangesIsOne: whoever asks while the only row is being changed is not told that
// there is none, and that there is nothing to look up.
func TestRowThatChangesIsOne(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
	if err := l.Record(lose(0, 4096)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { // ends with its rounds
		for range 20_000 {
			if err := l.Record(join(move(0, 4096, Reinitialized), lose(0, 4096))); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for none := 0; ; {
		select {
		case err := <-done:
			if err != nil || none > 0 {
				t.Errorf("asked %d times when there were no rows; %v", none, err)
			}
			return
		default:
			if !l.Any() {
				none++
			}
		}
	}
}
