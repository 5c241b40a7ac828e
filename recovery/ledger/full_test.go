package ledger

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// P5: rows wait in memory for a disk that refuses them, up to a limit, and
// nothing is lost when it takes them again.
func TestRefusingDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	l.limit = 3000
	refuse(l, true)
	var many Change
	for n := range int64(l.limit) {
		many.Lost = append(many.Lost, lose(n*128, 64).Lost...)
	}
	if err := l.Record(many); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(Change{Close: []uint64{1}}); !errors.Is(err, berrors.ErrMaxSizeReached) {
		t.Errorf("Commit on a full disk: %v", err)
	}
	if l.Health() == nil || l.Waiting() < l.limit || !l.Closed(1) {
		t.Errorf("health %v, %d waiting, closed %v", l.Health(), l.Waiting(), l.Closed(1))
	}
	if err := l.Record(lose(1<<30, 64)); !errors.Is(err, ErrFull) {
		t.Errorf("new loss: %v", err)
	}
	if err := l.Record(many); err != nil {
		t.Errorf("loss that is known: %v", err)
	}
	if err := l.Record(move(0, 32, Overwritten)); err != nil {
		t.Errorf("loss that is over: %v", err)
	}
	refuse(l, false)
	if err := l.Flush(); err != nil || l.Health() != nil || l.Waiting() != 0 {
		t.Errorf("Flush: %v, health %v, %d waiting", err, l.Health(), l.Waiting())
	}
	again := mustOpen(t, copyOf(t, path))
	lost, _, err := again.Live(testFile.Key())
	if err != nil || lost.Count() != 3000 || lost.Contains(many.Lost[0].Range) || !again.Closed(1) {
		t.Errorf("%d ranges, closed %v, error %v", lost.Count(), again.Closed(1), err)
	}
}

func refuse(l *Ledger, yes bool) {
	l.disk.Lock()
	defer l.disk.Unlock()
	l.store.db.MaxSize = 0
	if yes {
		l.store.db.MaxSize = 1
	}
}

func TestFullFilesystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("SKIP: no tmpfs of limited size (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	l, err := Open(filepath.Join(dir, "ledger.db"), "fs-1", fileid.ID{})
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the filesystem is not full: %v", err)
	}
	var c Change
	for n := range int64(2000) {
		c = join(c, lose(n*128, 64))
	}
	if err := l.Commit(c); !errors.Is(err, unix.ENOSPC) || l.Waiting() < 2000 {
		t.Errorf("Commit: %v, %d waiting", err, l.Waiting())
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(Change{}); err != nil || l.Waiting() != 0 {
		t.Errorf("with room again: %v, %d waiting", err, l.Waiting())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	v, err := View(filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	if lost, _, err := v.Live(testFile.Key()); err != nil || lost.Count() != 2000 {
		t.Errorf("%d ranges, error %v", lost.Count(), err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}
