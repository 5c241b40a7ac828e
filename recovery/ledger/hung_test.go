package ledger

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// hang keeps every call from the disk until the function that it returns is called.
func hang(l *Ledger) (goOn func()) {
	l.store.mu.Lock()
	return l.store.mu.Unlock
}

// within fails if do waits for a disk that hangs.
func within(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { // ends when the disk goes on, at the latest
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Errorf("%s waits for the disk", what)
	}
}

// TestHungDiskHoldsNobodyUp: one file's rows are being read for the first time, by
// several, and the disk does not answer. Who asks for other files goes on.
func TestHungDiskHoldsNobodyUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	keys := manyFiles(t, path)
	l, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	loaded, first, second := keys[0], keys[1], keys[2]
	if _, _, err := l.Live(loaded); err != nil {
		t.Fatal(err)
	}
	goOn := hang(l)
	answers := make(chan error, 6)
	ask := func(key string) {
		lost, _, err := l.Live(key)
		if err == nil && lost.Count() != 21 {
			err = errors.New("rows are missing")
		}
		answers <- err
	}
	for _, key := range []string{first, first, second} {
		go ask(key)
	}
	go func() { answers <- l.Record(Change{Moves: []Move{{File: fileid.ID{Ino: 4}, To: Overwritten}}}) }()
	for range 2 {
		go func() {
			rows := 0
			for _, err := range l.Rows(first, true) {
				if err != nil {
					answers <- err
					return
				}
				rows++
			}
			if rows != 21 {
				answers <- errors.New("Rows: rows are missing")
				return
			}
			answers <- nil
		}()
	}
	for begun := false; !begun; time.Sleep(time.Millisecond) {
		within(t, "a look at what is in memory", func() {
			l.mu.RLock()
			defer l.mu.RUnlock()
			begun = l.files[first].load != nil && l.files[second].load != nil
		})
		if t.Failed() {
			break
		}
	}
	within(t, "Has", func() { l.Has(second) })
	within(t, "Live of a file in memory", func() { _, _, err = l.Live(loaded) })
	within(t, "Record of a new file", func() { err = errors.Join(err, l.Record(lose(0, 64))) })
	within(t, "Files", func() { l.Files(true) })
	within(t, "FlushFile of a file that is on disk", func() { err = errors.Join(err, l.FlushFile(loaded)) })
	goOn()
	if err != nil {
		t.Error(err)
	}
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Errorf("when the disk went on: %v", err)
		}
	}
}

// TestFlushFileIsOfOneFile: the disk is full, and only what waits for the file itself is
// in the way of its fsync.
func TestFlushFileIsOfOneFile(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
	other := lose(0, 64)
	other.Lost[0].File = fileid.ID{Ino: 99}
	mine, its := testFile.Key(), other.Lost[0].File.Key()
	if err := l.Commit(lose(0, 64)); err != nil {
		t.Fatal(err)
	}
	refuse(l, true)
	var many Change // the store has room for a few
	for n := range int64(3000) {
		x := other.Lost[0]
		x.Range.Off = n * 128
		many.Lost = append(many.Lost, x)
	}
	if err := l.Record(many); err != nil {
		t.Fatal(err)
	}
	if err := l.FlushFile(its); err == nil {
		t.Error("what waits is called durable")
	}
	if err := l.FlushFile(mine); err != nil {
		t.Errorf("the file's rows are on disk: %v", err)
	}
	if err := l.FlushFile("of nothing"); err != nil {
		t.Errorf("a file without rows: %v", err)
	}
	if err := l.Record(move(0, 64, Overwritten)); err != nil {
		t.Fatal(err)
	}
	if err := l.FlushFile(mine); err == nil {
		t.Error("a move that waits is called durable")
	}
	refuse(l, false)
	if err := l.FlushFile(mine); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := l.Flush(); err != nil {
		t.Error(err)
	}
}
