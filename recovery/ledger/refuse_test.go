package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/mendfs/mendfs/recovery/fileid"
)

func TestOpenRefuses(t *testing.T) {
	root := fileid.ID{Ino: 2, Handle: "1:02"}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		fs    string
		root  fileid.ID
		want  error
		says  string
	}{
		{"another filesystem", nil, "fs-2", root, ErrForeign, "another state directory"},
		{"another root", nil, "fs-1", fileid.ID{Ino: 3}, ErrForeign, "another state directory"},
		{"newer version", newer, "fs-1", root, ErrVersion, "newer mendfs"},
		{"empty file", cutTo(0), "fs-1", root, ErrDamaged, "move it away"},
		{"cut short", cutTo(9000), "fs-1", root, ErrDamaged, "move it away"},
		{"cut to less than a page", cutTo(100), "fs-1", root, ErrDamaged, "move it away"},
		{"something else", overwriteAll, "fs-1", root, ErrDamaged, "move it away"},
		{"another program's bbolt file", foreignBolt, "fs-1", root, ErrDamaged, "it is no ledger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			l := mustOpen(t, path)
			if err := errors.Join(l.Commit(lose(0, 4096)), l.Close()); err != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				c.spoil(t, path)
			}
			before := readAll(t, path)
			_, err := Open(path, c.fs, c.root)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v", err)
			}
			if c.want != ErrForeign { // View has no wish
				if _, err := View(path); !errors.Is(err, c.want) {
					t.Errorf("View: %v", err)
				}
			}
			if !bytes.Equal(before, readAll(t, path)) {
				t.Error("the file was changed")
			}
		})
	}
}

func cutTo(n int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
	}
}

func overwriteAll(t *testing.T, path string) {
	writeAll(t, path, bytes.Repeat([]byte("other data "), 6000))
}

func newer(t *testing.T, path string) {
	inBolt(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta()).Put(keyVersion(), binary.BigEndian.AppendUint64(nil, schema+1))
	})
}

func foreignBolt(t *testing.T, path string) {
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	inBolt(t, path, func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket([]byte("theirs"))
		return err
	})
}

func inBolt(t *testing.T, path string, do func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(do), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestSecondOpenerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	mustOpen(t, path)
	if _, err := Open(path, "fs-1", fileid.ID{}); !errors.Is(err, ErrLocked) {
		t.Errorf("Open: %v", err)
	}
	if _, err := View(path); !errors.Is(err, ErrLocked) {
		t.Errorf("View: %v", err)
	}
}

func TestViewOnlyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	if _, err := View(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("View of nothing: %v", err)
	}
	l := mustOpen(t, path)
	if err := errors.Join(l.Record(lose(0, 64)), l.Close()); err != nil {
		t.Fatal(err)
	}
	before := readAll(t, path)
	v, err := View(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := show(t, v); !strings.HasPrefix(got, "1:lost[0 +64)") {
		t.Errorf("rows: %q", got)
	}
	if err := v.Record(lose(64, 64)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Record: %v", err)
	}
	if err := errors.Join(v.Flush(), v.Close()); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(before, readAll(t, path)) {
		t.Error("the file was changed")
	}
}
