package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRandomCalls compares a journal with the model over random calls, orderly
// restarts and the death of the process.
func TestRandomCalls(t *testing.T) {
	t.Parallel()
	for range rounds(12) {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			v := newDriver(t, seed)
			if err := v.start(); err != nil {
				t.Fatal(err)
			}
			for range 300 {
				if err := v.call(); err != nil {
					t.Fatal(err)
				}
				if got, want := dump(t, v.j), v.m.String(); got != want {
					t.Fatalf("the journal says\n%s\nwant\n%s", got, want)
				}
				switch v.rng.IntN(40) {
				case 0:
					if err := v.j.Shutdown(); err != nil {
						t.Fatal(err)
					}
				case 1:
					v.d = v.d.restart()
				default:
					continue
				}
				if err := v.start(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestPowerCutAtEveryStep cuts the power at every operation on the disk, and
// looks for the calls that had returned.
func TestPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	for cut := 1; ; cut++ {
		if done := cutOnce(t, uint64(cut)*7919, cut, (*memDisk).powerCut); done {
			t.Logf("%d steps", cut-1)
			return
		}
	}
}

// TestKillAtEveryStep is the same for the death of the process: then nothing
// that had been called is lost.
func TestKillAtEveryStep(t *testing.T) {
	t.Parallel()
	for cut := 1; ; cut++ {
		if done := cutOnce(t, uint64(cut)*104729, cut, (*memDisk).restart); done {
			return
		}
	}
}

// TestRandomPowerCuts cuts at random, several times in one journal's life, also
// while it recovers.
func TestRandomPowerCuts(t *testing.T) {
	t.Parallel()
	for range rounds(120) {
		seed := rand.Uint64()
		v := newDriver(t, seed)
		for range 5 {
			v.live(seed, 1+v.rng.IntN(60), (*memDisk).powerCut)
		}
	}
}

func cutOnce(t *testing.T, seed uint64, cut int, after func(*memDisk) *memDisk) (done bool) {
	v := newDriver(t, seed)
	return v.live(seed, cut, after)
}

// live is the life of a process that makes random calls until the disk's
// operation number cut, and what the next process finds; done says that the life
// was too short for that.
func (v *driver) live(seed uint64, cut int, after func(*memDisk) *memDisk) (done bool) {
	v.d.cutAt = cut
	err := v.start()
	for n := 0; err == nil && v.j.Stats().Err == nil; n++ {
		if n == 100 {
			return true
		}
		err = v.call()
	}
	if err != nil && !errors.Is(err, errCut) {
		v.t.Fatalf("seed %d, cut at %d: %v", seed, cut, err)
	}
	v.d = after(v.d)
	found, err := open(v.d, testPath, testFS)
	if err != nil {
		v.t.Fatalf("seed %d, cut at %d: %v", seed, cut, err)
	}
	got := dump(v.t, found)
	from := v.durable
	at := slices.Index(v.history[from:], got)
	if at < 0 {
		v.t.Fatalf("seed %d, cut at %d: found\n%s\nwhich is none of the states since the last durable one:\n%s\nto\n%s",
			seed, cut, got, v.history[from], v.history[len(v.history)-1])
	}
	v.adopt(found)
	return false
}

// adopt makes the model what the journal says, after a crash.
func (v *driver) adopt(j *Journal) {
	v.m = newModel()
	for _, in := range j.Intents() {
		v.m.open[in.ID] = in
		delete(v.closed, in.ID)
	}
	for _, in := range j.Kept() {
		v.m.kept[in.ID] = in
	}
	for s, err := range j.Images(false) {
		if err != nil {
			v.t.Fatal(err)
		}
		if v.m.images[s.File.Key()] == nil {
			v.m.images[s.File.Key()] = map[int64]Saved{}
		}
		v.m.images[s.File.Key()][s.Page] = s
	}
	clear(v.closed) // a close is in the journal or not: TestRandomCalls
	v.history, v.durable = nil, 0
	v.note()
}

// TestFailingDisk lets calls fail at random with errnos, and asks after each
// that memory still is what the model says, and after a power cut that nothing
// durable was lost and nothing half-written was taken for a record.
func TestFailingDisk(t *testing.T) {
	t.Parallel()
	for range rounds(20) {
		seed := rand.Uint64()
		v := newDriver(t, seed)
		if err := v.start(); err != nil {
			t.Fatal(err)
		}
		var failing bool
		v.d.fail = func(op string) error {
			if !failing {
				return nil
			}
			if op == "allocate" || op == "create" {
				return unix.ENOSPC
			}
			return unix.EIO
		}
		for range 150 {
			if v.rng.IntN(10) == 0 {
				failing = !failing
			}
			v.j.mu.Lock()
			v.j.retry = v.j.retry.AddDate(-1, 0, 0) // no waiting
			v.j.mu.Unlock()
			before := v.m.String()
			err := v.call()
			if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if got, want := dump(t, v.j), v.m.String(); got != want && (err == nil || got != before) {
				t.Fatalf("seed %d, after %v: the journal says\n%s\nwant\n%s", seed, err, got, want)
			}
			if err != nil {
				v.adopt(v.j)
			}
		}
		failing = false
		v.j.mu.Lock()
		v.j.retry = v.j.retry.AddDate(-1, 0, 0)
		v.j.mu.Unlock()
		if err := v.j.Sync(); err != nil {
			t.Fatalf("seed %d: the disk is well again, and Sync says %v", seed, err)
		}
		want := dump(t, v.j)
		found, err := open(v.d.powerCut(), testPath, testFS)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := dump(t, found); got != want {
			t.Fatalf("seed %d: after a power cut\n%s\nwant\n%s", seed, got, want)
		}
	}
}
