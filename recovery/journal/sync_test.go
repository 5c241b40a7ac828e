package journal

import (
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestGroupCommit: whoever comes while an fdatasync runs shares the next one.
func TestGroupCommit(t *testing.T) {
	const writers = 16
	j, d := memJournal(t)
	first := make(chan struct{})
	var once sync.Once
	d.onSync = func() {
		once.Do(func() {
			close(first)
			for { // until all others have appended
				if j.Stats().Open == writers {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	before := d.syncs
	var wg sync.WaitGroup
	for n := range writers {
		wg.Go(func() {
			if n > 0 {
				<-first
			}
			if err := j.Begin(full()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := d.syncs - before; got != 2 {
		t.Errorf("%d fdatasyncs for %d intents, want 2", got, writers)
	}
	found, err := open(d.powerCut(), testPath, testFS)
	must(t, err)
	if got := len(found.Intents()); got != writers {
		t.Errorf("%d intents after a power cut, want %d", got, writers)
	}
}

// TestLazyRecordsReachTheDisk within about a second, with nobody asking.
func TestLazyRecordsReachTheDisk(t *testing.T) {
	j, d := memJournal(t)
	synced := make(chan struct{}, 1)
	d.onSync = func() { synced <- struct{}{} }
	must(t, j.SaveImage(fileid.ID{Ino: 1}, "f", Image{Data: make([]byte, ranges.PageSize)}))
	select {
	case <-synced:
	case <-time.After(10 * flushDelay):
		t.Fatal("a saved image was not synced")
	}
}

// TestFailedSync: an fdatasync that failed and then works has lost the data, and
// the journal must not take the second one for good.
func TestFailedSync(t *testing.T) {
	j, d := memJournal(t)
	in := full()
	must(t, j.Begin(in))
	d.fail = func(op string) error { return unix.EIO }
	if err := j.Begin(full()); !errors.Is(err, unix.EIO) {
		t.Fatalf("Begin on a failing disk: %v", err)
	}
	if st := j.Stats(); st.Err == nil || st.Open != 1 {
		t.Errorf("stats of a broken journal: %+v", st)
	}
	if err := j.Begin(full()); !errors.Is(err, unix.EIO) {
		t.Fatalf("Begin on a disk that still fails: %v", err)
	}
	d.fail = nil
	if err := j.Begin(full()); !errors.Is(err, unix.EIO) {
		t.Fatalf("Begin just after an attempt that failed: %v", err)
	}
	time.Sleep(retryDelay)
	later := full()
	must(t, j.Begin(later))
	found, err := open(d.powerCut(), testPath, testFS)
	must(t, err)
	if got := found.Intents(); len(got) != 2 || got[0].ID != in.ID || got[1].ID != later.ID {
		t.Errorf("after a power cut %d intents, want %d and %d: %+v", len(got), in.ID, later.ID, got)
	}
}
