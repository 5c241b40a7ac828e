package ledger

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// manyFiles is a store with rows of several files, none of which is in memory.
func manyFiles(t *testing.T, path string) []string {
	t.Helper()
	l := mustOpen(t, path)
	var keys []string
	var all Change
	for n := range 200 {
		x := lose(0, 64)
		x.Lost[0].File = fileid.ID{Ino: uint64(n) + 1}
		x.Lost[0].Path = "some/path/of/a/file/that/takes/room"
		all = join(all, x)
		for m := range int64(20) {
			y := x.Lost[0]
			y.Range.Off = 128 * (m + 1)
			all.Lost = append(all.Lost, y)
		}
		keys = append(keys, x.Lost[0].File.Key())
	}
	if err := errors.Join(l.Commit(all), l.Close()); err != nil {
		t.Fatal(err)
	}
	return keys
}

// The file is cut while all kinds of callers are at work on their own
// goroutines, of a mount and of a View: each gets an error or what is in memory,
// and the process lives.
func TestFileCutUnderLoad(t *testing.T) {
	for _, view := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "ledger.db")
		keys := manyFiles(t, path)
		l, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"})
		if view {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l, err = View(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		begun := make(chan struct{})
		var begin sync.Once
		var all sync.WaitGroup
		failed := sync.Map{}
		work := func(name string, do func(n int) error) {
			all.Go(func() {
				for n := range 4 * len(keys) {
					if n == len(keys)/4 {
						begin.Do(func() { close(begun) })
					}
					err := do(n)
					switch {
					case err == nil, errors.Is(err, ErrReadOnly):
					case errors.Is(err, ErrDamaged):
						failed.Store(name, true)
					default:
						t.Errorf("%s: %v", name, err)
					}
				}
			})
		}
		work("Live", func(n int) error { _, _, err := l.Live(keys[n%len(keys)]); return err })
		work("Rows", func(n int) error {
			for _, err := range l.Rows(keys[n%len(keys)], true) {
				if err != nil {
					return err
				}
			}
			return nil
		})
		work("Commit", func(n int) error { return l.Commit(lose(int64(n)*128, 64)) })
		work("Record", func(n int) error { return l.Record(lose(1<<30+int64(n)*128, 64)) })
		work("Flush", func(int) error { return l.Flush() })
		<-begun
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		for _, name := range []string{"Rows", "Commit"} {
			if _, ok := failed.Load(name); !ok && (!view || name == "Rows") {
				t.Errorf("%s met no error after the file was cut", name)
			}
		}
		if err := l.Close(); !view && !errors.Is(err, ErrDamaged) {
			t.Errorf("Close: %v", err)
		}
		if debug.SetPanicOnFault(false) {
			t.Error("a fault elsewhere would be taken for one of the store")
		}
	}
}

// A bucket of the store read in the wrong moment is an error too, at open.
func TestFileCutBeforeOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	manyFiles(t, path)
	whole := readAll(t, path)
	l, err := View(path)
	if err != nil {
		t.Fatal(err)
	}
	var used int64 // bbolt makes the file longer than that
	err = errors.Join(l.store.view(func(tx *bbolt.Tx) error { used = tx.Size(); return nil }), l.Close())
	if err != nil {
		t.Fatal(err)
	}
	for size := int64(0); size < used; size += 2039 {
		writeAll(t, path, whole[:size])
		if _, err := View(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes of %d: View: %v", size, len(whole), err)
		}
		if _, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes of %d: Open: %v", size, len(whole), err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != size {
			t.Fatalf("%d bytes: the store was made anew: %v, %v", size, st, err)
		}
	}
}

// FuzzOpen feeds damaged stores to Open and View: an error of a known kind, or a
// store that works. The damage is an order of blocks to move and bytes to
// change, since random bytes never get past the first page.
func FuzzOpen(f *testing.F) {
	v := newVersions(f)
	f.Add([]byte{0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 6, 0, 3, 2, 3, 4, 0, 8, 200, 1, 0})
	f.Add([]byte{2, 5, 0, 4, 1, 4, 0, 6, 0, 2, 2, 2})
	f.Add([]byte{3, 1, 0, 5, 0, 0, 1, 1, 1, 9, 7, 7})
	f.Fuzz(func(t *testing.T, orders []byte) {
		orders = orders[:min(len(orders), 60)]
		data := append([]byte(nil), v.files[len(v.files)-1]...)
		for ; len(orders) >= 6 && len(data) >= pageSize; orders = orders[6:] {
			data = v.obey([6]byte(orders[:6]), data)
		}
		path := filepath.Join(memoryDir(t), "fuzzed.db")
		writeAll(t, path, data)
		rows, err := tryRows(path)
		var known *StoreError
		if err != nil && !errors.As(err, &known) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if _, real := v.rows[rows]; err == nil && !real {
			t.Fatalf("rows that never were: %.300s", rows)
		}
	})
}

// memoryDir is a directory in memory, where there is one: a commit waits for nothing there.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ledger")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// obey does one piece of damage: what, which version, and where to and from.
func (v versions) obey(o [6]byte, data []byte) []byte {
	at := (int(o[2])<<8 | int(o[3])) * sectorSize % len(data)
	old := v.files[int(o[1])%len(v.files)]
	switch o[0] % 5 {
	case 0:
		data[(at+int(o[4])*2)%len(data)] ^= o[5]
	case 1: // a page of a version
		at &^= pageSize - 1
		if at < len(old) {
			copy(data[at:], old[at:min(len(old), at+pageSize)])
		}
	case 2: // a page of another place
		from := (int(o[4])<<8 | int(o[5])) * pageSize % len(old)
		copy(data[at&^(pageSize-1):], old[from&^(pageSize-1):][:min(pageSize, len(old)-from&^(pageSize-1))])
	case 3:
		clear(data[at:min(len(data), at+sectorSize)])
	case 4:
		data = data[:max(1, len(data)-at)]
	}
	return data
}
