package ledger

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Stores made by the first program of each schema open, for ever, and are written
// on. Fixtures are never made anew.
func TestStoresOfAllVersions(t *testing.T) {
	if *newFixture {
		makeFixture(t, fixture(schema))
	}
	for version := uint64(1); version <= schema; version++ {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			data := unzip(t, fixture(version))
			writeAll(t, path, data)
			v, err := View(path)
			if err != nil {
				t.Fatal(err)
			}
			if v.store.version != version {
				t.Errorf("it is of version %d", v.store.version)
			}
			checkFixture(t, v)
			if err := v.Close(); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(readAll(t, path), data) {
				t.Error("View has changed it")
			}
			l := mustOpen(t, path)
			checkFixture(t, l)
			if err := errors.Join(l.Commit(lose(1<<20, 64)), l.Close()); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, path)
			if got := show(t, l); l.store.version != schema || !strings.HasPrefix(got, fixtureRows+", 5:lost[1048576 +64)") {
				t.Errorf("after writing, of version %d: %s", l.store.version, got)
			}
		})
	}
}

func fixture(version uint64) string { return fmt.Sprintf("testdata/v%d.db.gz", version) }

func unzip(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // opened for reading
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func checkFixture(t *testing.T, l *Ledger) {
	t.Helper()
	if got := show(t, l); got != fixtureRows {
		t.Errorf("rows\n got %s\nwant %s", got, fixtureRows)
	}
	for r := range l.All(false) {
		if r.Path != "a/b" || r.Cause != "eio" || r.Source != "kernel" || r.Granularity != 4096 || r.File != testFile {
			t.Errorf("row %+v", plainRow(r))
		}
	}
	if !l.Closed(77) || l.Closed(78) {
		t.Error("the closed intents are not 77 alone")
	}
}

func makeFixture(t *testing.T, fixture string) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	second := int64(0)
	l.now = func() time.Time { second++; return time.Unix(second, 0) }
	err := errors.Join(
		l.Commit(lose(0, 4096)), l.Commit(move(100, 50, Overwritten)), l.Commit(lose(8192, 64)),
		l.Commit(move(8192, 64, Reinitialized)), l.Commit(Change{Close: []uint64{77, 78}}))
	l.Forget(78)
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(fixture, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(out)
	_, err = z.Write(readAll(t, path))
	if err := errors.Join(err, z.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
}
