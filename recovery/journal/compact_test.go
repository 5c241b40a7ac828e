package journal

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// garbageOf fills the journal with records that a compaction leaves out, and
// some that it does not.
func garbageOf(t testing.TB, j *Journal) (file fileid.ID) {
	t.Helper()
	file = fileid.ID{Ino: 5}
	j.compactAt = 64 << 10
	must(t, j.Begin(full()))
	must(t, j.SaveImage(file, "f", Image{Page: 4096, Data: bytes.Repeat([]byte{9}, ranges.PageSize)}))
	must(t, j.SaveImage(file, "f", Image{Page: 8192, Data: bytes.Repeat([]byte{8}, ranges.PageSize)}))
	for j.garbage() <= 2*j.compactAt {
		in := full()
		must(t, j.Begin(in))
		must(t, j.Close(in.ID))
	}
	must(t, j.Sync())
	return file
}

// Nobody waits for a compaction: what is asked for while it writes its file is
// done at once, and is in the new file, wherever the power goes.
func TestRepairsGoOnDuringCompaction(t *testing.T) {
	for cut := 0; ; cut++ {
		j, d := memJournal(t)
		file := garbageOf(t, j)
		open := j.Intents()[0]
		var promised []uint64
		var dropped error
		asked := make(chan struct{})
		var first atomic.Bool
		d.onSync = func() { // first called by the compaction, when all is copied
			if !first.CompareAndSwap(false, true) {
				return
			}
			go func() {
				defer close(asked)
				for range 3 {
					if in := full(); j.Begin(in) == nil {
						promised = append(promised, in.ID)
					}
				}
				dropped = j.DropImages(file.Key(), ranges.Page(4096))
				if err := j.Close(open.ID); err == nil {
					_ = j.Sync() // what it says is seen in the end
				}
			}()
			for deadline := time.Now().Add(20 * time.Second); !d.isCut(); time.Sleep(time.Millisecond) {
				select {
				case <-asked:
					return
				default:
				}
				if time.Now().After(deadline) {
					t.Error("a repair waits for the compaction")
					return
				}
			}
		}
		before := d.ops
		if cut > 0 {
			d.cutAt = before + cut
		}
		was := j.head.first
		_, err := j.Checkpoint()
		if first.Load() { // or the power went before
			<-asked
		}
		whole := !d.isCut()
		if whole && (err != nil || dropped != nil || j.head.first <= was) {
			t.Fatalf("cut %d: Checkpoint: %v, drop: %v, first record %d, was %d", cut, err, dropped, j.head.first, was)
		}
		checkAfter(t, cut, d.restart(), promised, whole, open.ID)
		checkAfter(t, cut, d.powerCut(), promised, false, open.ID)
		if whole && cut > 0 {
			return
		}
	}
}

// isCut reports whether the power is gone.
func (d *memDisk) isCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cutAt > 0 && d.ops >= d.cutAt
}

// checkAfter opens the journal as the next process does.
func checkAfter(t *testing.T, cut int, d *memDisk, promised []uint64, whole bool, closed uint64) {
	t.Helper()
	j, err := open(d, testPath, testFS)
	if err != nil {
		t.Fatalf("cut %d: %v", cut, err)
	}
	have := map[uint64]bool{}
	for _, in := range j.Intents() {
		have[in.ID] = true
	}
	for _, id := range promised {
		if !have[id] {
			t.Errorf("cut %d: intent %d was begun and is gone", cut, id)
		}
	}
	if whole && (have[closed] || len(have) != len(promised) || j.Stats().Images != 1) {
		t.Errorf("cut %d: %d open, want %d; %d images", cut, len(have), len(promised), j.Stats().Images)
	}
	must(t, j.Shutdown())
}

// What is asked for by many, while the journal is compacted again and again, is
// all there. For the race detector too.
func TestCompactionUnderLoad(t *testing.T) {
	j := tempJournal(t)
	j.compactAt = 256 << 10
	var wg sync.WaitGroup
	stop := make(chan struct{})
	compactions, first := 0, uint64(0)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := j.Checkpoint(); err != nil {
				t.Error(err)
				return
			}
			j.mu.Lock()
			if j.head.first != first {
				compactions, first = compactions+1, j.head.first
			}
			j.mu.Unlock()
		}
	})
	var writers sync.WaitGroup
	for w := range 4 {
		file := fileid.ID{Ino: uint64(w) + 1}
		writers.Go(func() {
			for n := range 300 {
				in := full()
				in.Path = fmt.Sprint(w, " ", n)
				image := Image{Page: int64(n%8) * ranges.PageSize, Data: bytes.Repeat([]byte{byte(n)}, ranges.PageSize)}
				for _, err := range []error{j.Begin(in), j.SaveImage(file, "f", image)} {
					if err != nil {
						t.Error(err)
					}
				}
				if n%100 != 0 {
					if err := j.Close(in.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	wg.Wait()
	if compactions < 2 {
		t.Errorf("%d compactions, this is no test", compactions)
	}
	want := dump(t, j)
	if got := j.Stats(); got.Open != 4*3 || got.Images != 4*8 {
		t.Errorf("%+v", got)
	}
	must(t, j.Shutdown())
	again, err := View(j.path)
	must(t, err)
	if got := dump(t, again); got != want {
		t.Errorf("opened again\n%.2000s\nwant\n%.2000s", got, want)
	}
	must(t, again.Shutdown())
}
