package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
)

// TestRecordsOfAnother puts records into a state directory that this mendfs, or
// this filesystem, can't have made. Each is refused with the way out and left alone.
func TestRecordsOfAnother(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		put  func(t *testing.T, path string)
		says []string
	}{
		"a newer journal":                   {journalFile, newerJournal, []string{"version 2", "use the newer mendfs"}},
		"a newer ledger":                    {ledgerFile, newerLedger, []string{"version 3", "use the newer mendfs"}},
		"the journal of another filesystem": {journalFile, foreignJournal, []string{"of another filesystem", "--state"}},
		"the ledger of another filesystem":  {ledgerFile, foreignLedger, []string{"another filesystem", "move this one away"}},
		"a damaged journal":                 {journalFile, garbled, []string{"damaged", "from a backup"}},
		"a damaged ledger":                  {ledgerFile, garbled, []string{"damaged", "restore it from a copy"}},
		"a directory as journal":            {journalFile, directory, []string{"is a directory", "--state"}},
		"a link as journal":                 {journalFile, link, []string{"too many levels of symbolic links", "--state"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.end(b.mount(b.options()))
			path := filepath.Join(b.state, c.file)
			c.put(t, path)
			before, tree := content(path), b.tree()
			m, err := New(b.options())
			if err == nil {
				b.end(m)
				t.Fatal("was mounted")
			}
			var e *Error
			if !errors.As(err, &e) || e.Exit != operationalCode || !strings.Contains(err.Error(), "; ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line with a next step: %v", err)
			}
			for _, words := range c.says {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("does not say %q: %v", words, err)
				}
			}
			if content(path) != before || b.tree() != tree {
				t.Error("something was changed")
			}
		})
	}
}

// content is what a file has; of a directory nothing.
func content(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func newerJournal(t *testing.T, path string) {
	t.Helper()
	head := make([]byte, 4096)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(head[8:], 2)
	binary.LittleEndian.PutUint32(head[12:], 0)
	binary.LittleEndian.PutUint32(head[12:], crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := f.WriteAt(head, 0); err != nil {
		t.Fatal(err)
	}
}

func newerLedger(t *testing.T, path string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("version"), binary.BigEndian.AppendUint64(nil, 3))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func foreignJournal(t *testing.T, path string) {
	t.Helper()
	err := os.Remove(path)
	j, opened := journal.Open(path, "another")
	if err := errors.Join(err, opened); err != nil {
		t.Fatal(err)
	}
	if err := j.Shutdown(); err != nil {
		t.Fatal(err)
	}
}

func foreignLedger(t *testing.T, path string) {
	t.Helper()
	err := os.Remove(path)
	l, opened := ledger.Open(path, "another", fileid.ID{Ino: 2})
	if err := errors.Join(err, opened); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func garbled(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Repeat("damaged\n", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func directory(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Rename(path, path+".away"), os.Symlink(path+".away", path)); err != nil {
		t.Fatal(err)
	}
}

// TestStateInUse has another process, as flock(2) sees it, use the directory.
func TestStateInUse(t *testing.T) {
	b := newBench(t)
	b.end(b.mount(b.options()))
	lock, err := os.OpenFile(filepath.Join(b.state, lockFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for name, how := range map[string]int{"by a mount": unix.LOCK_EX, "by a verb that reads": unix.LOCK_SH} {
		if err := unix.Flock(int(lock.Fd()), how); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		b.refused(b.options(), operationalCode, "is in use by another mendfs")
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	b.end(b.mount(b.options()))
}

// TestDropInAnothersState is refused to root: the fresh journal would be root's.
func TestDropInAnothersState(t *testing.T) {
	b := newBench(t)
	b.end(b.mount(b.options()))
	if err := os.Chown(b.state, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	s, err := OpenState(b.state)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "belongs to uid 65534; ask as the user") {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(s.Close(), os.Chown(b.state, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenState(b.state); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "no conflict has the id 1") {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailedStartTellsOnce what has kept it from starting, and what is new.
func TestFailedStartTellsOnce(t *testing.T) {
	boom, other := errors.New("boom"), errors.New("other")
	full := func(path string) error { return &os.PathError{Op: "write", Path: path, Err: unix.ENOSPC} }
	wrapped := fmt.Errorf("closing: %w", boom)
	both := fmt.Errorf("%w: %w", boom, unix.ENOSPC)
	told := failed(errors.Join(fmt.Errorf("starting: %w", boom), full("/state/journal")), "", "it can't start")
	for name, c := range map[string]struct{ err, want error }{
		"nothing":                  {nil, nil},
		"the same":                 {boom, nil},
		"the same, wrapped":        {wrapped, nil},
		"the same, with its errno": {both, nil},
		"the same, deep":           {errors.Join(nil, errors.Join(wrapped, boom)), nil},
		"the same file again":      {fmt.Errorf("sealing: %w", full("/state/journal")), nil},
		"another":                  {other, other},
		"another with it":          {errors.Join(boom, other), errors.Join(boom, other)},
		"another of the same text": {errors.New("boom"), errors.New("boom")},
		"another file":             {full("/state/ledger.db"), full("/state/ledger.db")},
		"an errno by itself":       {unix.ENOSPC, unix.ENOSPC},
		"an errno of another step": {fmt.Errorf("unmounting: %w", unix.ENOSPC), fmt.Errorf("unmounting: %w", unix.ENOSPC)},
	} {
		t.Run(name, func(t *testing.T) {
			got := news([]error{nil, c.err}, told)
			if (got == nil) != (c.want == nil) || c.want != nil && got.Error() != c.want.Error() {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
