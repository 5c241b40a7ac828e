package event

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

func TestEmitNeverBlocks(t *testing.T) {
	for _, c := range []struct {
		name        string
		file, human bool // which of them hangs
	}{{"file hangs", true, false}, {"human text hangs", false, true}, {"both hang", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			gate := make(chan struct{})
			s, human := &sink{}, &sink{}
			if c.file {
				s.gate = gate
			}
			if c.human {
				human.gate = gate
			}
			l := startTest(t, s, human, nil)
			const n = testRoom + 5000
			l.mu.Lock()
			l.room = testRoom
			l.mu.Unlock()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for off := range int64(n) {
					l.Emit(lost(off))
				}
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("Emit blocks")
			}
			close(gate)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			checkAllAccounted(t, s.lines(), l.Counts(), n)
		})
	}
}

// checkAllAccounted checks that as many events as may wait are written, in
// order, and that the rest is counted.
func checkAllAccounted(t *testing.T, got []Event, counts map[Kind]int64, n int64) {
	t.Helper()
	var written, dropped int64
	last := int64(-1)
	for i, e := range got {
		switch {
		case e.Event == Dropped:
			dropped += e.Count
		case e.Offset <= last:
			t.Fatalf("line %d has offset %d after %d: not in order", i, e.Offset, last)
		default:
			written++
			last = e.Offset
		}
	}
	if written < testRoom || written+dropped != n || counts[Lost] != n || counts[Dropped] != dropped {
		t.Errorf("%d written, %d dropped, of %d; counts %v", written, dropped, n, counts)
	}
}

// A storm of different events neither grows the table nor is dropped, as long
// as the file takes it: the counting of the oldest ends, with its count.
func TestOldestMakesRoom(t *testing.T) {
	s, c := &sink{}, newClock()
	l := startTest(t, s, nil, c.read)
	l.mu.Lock()
	l.room = testRoom
	l.mu.Unlock()
	const n = 5 * testRoom
	for off := range int64(n) {
		for range 1 + off%3 {
			l.Emit(lost(off))
		}
		if off%(testRoom/2) == 0 {
			waitWritten(t, l)
		}
	}
	l.mu.Lock()
	open, aged := len(l.open), l.byAge.Len()
	l.mu.Unlock()
	if open > testRoom || open != aged {
		t.Errorf("%d events are being counted, %d by age, want at most %d", open, aged, testRoom)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	firsts, counts := map[int64]bool{}, map[int64]int64{}
	for _, e := range s.lines() {
		if !firsts[e.Offset] && e.Count > 1+e.Offset%3 || e.Event != Lost {
			t.Errorf("%+v", e)
		}
		firsts[e.Offset] = true
		counts[e.Offset] = e.Count
	}
	for off := range int64(n) {
		if counts[off] != 1+off%3 {
			t.Errorf("offset %d: the last line has count %d, want %d", off, counts[off], 1+off%3)
		}
	}
	if got := l.Counts(); got[Lost] != 2*n || got[Dropped] != 0 {
		t.Errorf("counts %v", got)
	}
}

// What a storm leaves in memory is bounded, however many events it had.
func TestStormMemory(t *testing.T) {
	const most = 16 << 20
	l, err := New(Options{Path: filepath.Join(t.TempDir(), "events.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	uid := uint32(999)
	for off := range int64(200_000) {
		e := lost(off * 128)
		e.Path = fmt.Sprint("some/directory/with/a/file-", off%10_000)
		e.Ino, e.Dev, e.FS, e.UID, e.Action = uint64(off%10_000), fmt.Sprint("259:", off%2), "6f1c5a0e-uuid", &uid, "zero-filled"
		l.Emit(e)
	}
	if live := heap() - before; live > most {
		t.Errorf("%d bytes are held, want at most %d", live, most)
	} else {
		t.Logf("%d KiB are held", live>>10)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if c := l.Counts(); c[Lost] != 200_000 {
		t.Errorf("counts %v", c)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
