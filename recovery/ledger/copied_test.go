package ledger

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// copied is the record of zeros that were copied to a file.
func copied(id fileid.ID, r ranges.Range) Change {
	return Change{
		Lost:  []Loss{{File: id, Path: "copy", Range: r, Cause: CauseCopied, Source: "kernel", Granularity: 1}},
		Moves: []Move{{File: id, Path: "copy", Range: r, To: Reinitialized}},
	}
}

// Copied zeros have a row as long as they are there, and take no other's place.
func TestCopiedRows(t *testing.T) {
	copyTo := func(off, length int64) Change { return copied(testFile, ranges.Range{Off: off, Len: length}) }
	checkRows(t, []rowsCase{
		{"they are live", []Change{copyTo(0, 64)}, "1:reinitialized[0 +64) 1-1"},
		{"overwritten in part, the rest is live",
			[]Change{copyTo(0, 300), move(100, 50, Overwritten)},
			"1:reinitialized[0 +100) 1-1, 2:reinitialized[150 +150) 1-1"},
		{"overwritten, nothing is left", []Change{copyTo(0, 64), move(0, 64, Overwritten)}, ""},
		{"healed, nothing is left", []Change{copyTo(0, 64), move(0, 64, Healed)}, ""},
		{"copied and overwritten in one change", []Change{join(copyTo(0, 64), move(0, 64, Overwritten))}, ""},
		{"next to a loss, that alone is history",
			[]Change{lose(0, 64), copyTo(64, 64), move(0, 128, Overwritten)},
			"1:overwritten[0 +64) 1-3"},
		{"what was lost here stays a loss of its own",
			[]Change{lose(0, 64), move(0, 64, Reinitialized), copyTo(0, 128), move(0, 128, Overwritten)},
			"1:overwritten[0 +64) 1-4"},
		{"bytes that are lost where copied zeros were are a loss",
			[]Change{copyTo(0, 64), lose(0, 64), move(0, 64, Overwritten)},
			"1:overwritten[0 +64) 1-3"},
		{"copied again after it was gone", []Change{copyTo(0, 64), move(0, 64, Overwritten), copyTo(0, 64)},
			"2:reinitialized[0 +64) 3-3"},
	})
}

// records is how many files the store has a record of, and how many the ledger holds.
func records(t *testing.T, l *Ledger) (stored, held int) {
	t.Helper()
	err := l.store.view(func(tx *bbolt.Tx) error { stored = tx.Bucket(bucketFiles()).Stats().KeyN; return nil })
	if err != nil {
		t.Fatal(err)
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return stored, len(l.files)
}

// Of a file without a row nothing is left, on disk and in memory, whichever
// transactions the row's coming and going are in, and what had rows by a loss stays.
func TestFileWithoutRowsIsForgotten(t *testing.T) {
	gone := fileid.ID{Ino: 77}
	at := ranges.Range{Off: 0, Len: 64}
	leave := Change{Moves: []Move{{File: gone, Range: at, To: Overwritten}}}
	for _, c := range []struct {
		name string
		do   func(l *Ledger) error
	}{
		{"one change", func(l *Ledger) error { return l.Record(join(copied(gone, at), leave)) }},
		{"one transaction", func(l *Ledger) error { return errors.Join(l.Record(copied(gone, at)), l.Record(leave)) }},
		{"two transactions", func(l *Ledger) error { return errors.Join(l.Commit(copied(gone, at)), l.Record(leave)) }},
		{"two batches that wait", func(l *Ledger) error {
			err := l.Record(copied(gone, at))
			sealNow(l)
			err = errors.Join(err, l.Record(leave))
			sealNow(l)
			return err
		}},
		{"and again while the first end waits", func(l *Ledger) error {
			err := errors.Join(l.Commit(copied(gone, at)), l.Record(leave))
			sealNow(l)
			err = errors.Join(err, l.Record(copied(gone, at)))
			sealNow(l)
			return errors.Join(err, l.Record(leave))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			l := mustOpen(t, path)
			if err := errors.Join(l.Commit(join(lose(0, 64), move(0, 64, Overwritten))), c.do(l)); err != nil {
				t.Fatal(err)
			}
			if got := l.Files(true); len(got) != 1 || got[0].ID != testFile {
				t.Errorf("before the flush: %v", got)
			}
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			for _, of := range []*Ledger{l, mustOpen(t, copyOf(t, path))} {
				if stored, held := records(t, of); stored != 1 || held != 1 {
					t.Errorf("%d files have a record, %d are held, want 1", stored, held)
				}
				if l.Has(gone.Key()) || of.Any() {
					t.Error("it still has a row")
				}
			}
			if err := errors.Join(l.Commit(copied(gone, at)), l.Close()); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, path)
			if _, reinit, err := l.Live(gone.Key()); err != nil || reinit.Bytes() != at.Len {
				t.Errorf("with a row again: %v, %v", reinit, err)
			}
		})
	}
}

// sealNow makes a batch of what is in none.
func sealNow(l *Ledger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seal()
}

// The end of a file's last row is waited for like any change of it.
func TestFlushFileWaitsForTheEndOfTheLastRow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	at := ranges.Range{Off: 0, Len: 64}
	if err := errors.Join(l.Commit(copied(testFile, at)), l.Record(move(0, 64, Overwritten))); err != nil {
		t.Fatal(err)
	}
	sealNow(l)
	if err := l.FlushFile(testFile.Key()); err != nil {
		t.Fatal(err)
	}
	if stored, _ := records(t, mustOpen(t, copyOf(t, path))); stored != 0 {
		t.Error("a crash would bring the row back")
	}
}

// The store does not grow while files with copied zeros come and go: what is there
// at one time bounds it.
func TestCopiesThatComeAndGoTakeNoRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	var early int64
	for n := range 120 {
		id := fileid.ID{Ino: uint64(n) + 100, Handle: fmt.Sprintf("1:%04x", n)}
		var c Change
		for i := range int64(300) {
			one := copied(id, ranges.Range{Off: i * 128, Len: 64})
			c.Lost, c.Moves = append(c.Lost, one.Lost...), append(c.Moves, one.Moves...)
		}
		if err := errors.Join(l.Commit(c), l.Record(Change{Moves: []Move{{File: id, Range: ranges.Between(0, 1<<40), To: Overwritten}}})); err != nil {
			t.Fatal(err)
		}
		if n == 20 {
			early = size()
		}
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if stored, held := records(t, l); stored != 0 || held != 0 || l.Count() != 0 {
		t.Errorf("%d files have a record, %d are held, with %d rows", stored, held, l.Count())
	}
	if late := size(); late > 2*early {
		t.Errorf("%d bytes after 120 files, and %d after 20", late, early)
	}
}

// For the race detector: who asks of a file whose last row goes gets an answer.
func TestLastRowGoesWhileOthersAsk(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
	at, key := ranges.Range{Off: 0, Len: 64}, testFile.Key()
	var wg sync.WaitGroup
	quit := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				_, reinit, err := l.Live(key)
				if err := errors.Join(err, l.Load(key), l.FlushFile(key)); err != nil || reinit.Bytes() > at.Len {
					t.Errorf("%v, %v", reinit, err)
				}
				for row, err := range l.All(true) {
					if err != nil || row.Cause != CauseCopied {
						t.Errorf("%+v, %v", row, err)
					}
				}
				l.Within(key, at, Reinitialized)
			}
		})
	}
	for range rounds(400) {
		if err := errors.Join(l.Record(copied(testFile, at)), l.Commit(move(0, 64, Overwritten))); err != nil {
			t.Error(err)
		}
	}
	close(quit)
	wg.Wait()
	if stored, held := records(t, l); stored != 0 || held != 0 {
		t.Errorf("%d files have a record, %d are held", stored, held)
	}
}

// A crash between any two transactions leaves the store as it was when the batch of the
// first was made, and one that may have failed is written again to the same.
func TestCrashBetweenBatches(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, o := mustOpen(t, path), newOracle()
	now := int64(1_000_000)
	l.now = func() time.Time { return time.Unix(0, now) }
	l.disk.Lock() // the transactions are ours
	defer l.disk.Unlock()
	var then []*oracle // one for each batch that waits
	for step := range uint64(rounds(800)) {
		switch n := rnd.IntN(6); {
		case n < 3:
			now++
			c := randomChange(rnd, step)
			if step < 100 { // before there is history that keeps every file
				c.Lost = slices.DeleteFunc(c.Lost, func(x Loss) bool { return x.Cause != CauseCopied })
			}
			o.apply(c, now)
			if err := l.Record(c); err != nil {
				t.Fatal(err)
			}
		case n < 5:
			then = append(then, o.clone())
			sealNow(l)
		case len(then) > 0:
			writeOne(t, l, rnd.IntN(3) == 0)
			then[0].check(t, mustOpen(t, copyOf(t, path)))
			then = then[1:]
		}
	}
}

// writeOne writes the oldest batch, or twice, as if the first time may have failed.
func writeOne(t *testing.T, l *Ledger, twice bool) {
	t.Helper()
	for _, end := range []error{errors.New("it may have failed"), nil} {
		if end != nil && !twice {
			continue
		}
		b, _ := l.begin()
		if err := l.write(b); err != nil {
			t.Fatal(err)
		}
		l.end(b.number, end)
	}
}

func (o *oracle) clone() *oracle {
	c := newOracle()
	for id, bytes := range o.live {
		c.live[id] = maps.Clone(bytes)
	}
	for id, bytes := range o.history {
		for b, fates := range bytes {
			at(c.history, id)[b] = slices.Clone(fates)
		}
	}
	maps.Copy(c.closed, o.closed)
	return c
}
