package ledger

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// childEnv makes this test binary the process that TestKill kills.
const childEnv = "LEDGER_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		fmt.Println(commitForEver(path)) // returns on error only
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// commitForEver commits row after row, and prints each when it is durable.
func commitForEver(path string) error {
	l, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"})
	if err != nil {
		return err
	}
	for n := int64(0); ; n++ {
		c := join(lose(n*4096, 4096), move(n*4096+64, 64, Overwritten))
		c.Close = []uint64{uint64(n)}
		if err := l.Commit(c); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// What Commit has promised is there after kill -9, each change as a whole.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 5 {
		path := filepath.Join(t.TempDir(), "ledger.db")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		promised, wanted := int64(-1), rnd.Int64N(60)
		for lines := bufio.NewScanner(out); promised < wanted && lines.Scan(); {
			if _, err := fmt.Sscan(lines.Text(), &promised); err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
		}
		time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
		_ = cmd.Process.Kill() // it is running: it never ends by itself
		_ = cmd.Wait()         // its status is that it was killed
		checkKilled(t, path, promised)
	}
}

func checkKilled(t *testing.T, path string, promised int64) {
	t.Helper()
	l := mustOpen(t, path)
	pages := map[int64]int64{}
	for r, err := range l.All(true) {
		if err != nil {
			t.Fatal(err)
		}
		pages[r.Off/4096] += r.Len
	}
	for n, bytes := range pages {
		if bytes != 4096 || !l.Closed(uint64(n)) {
			t.Errorf("change %d: %d bytes, closed %v", n, bytes, l.Closed(uint64(n)))
		}
	}
	for n := range promised + 1 {
		if pages[n] == 0 {
			t.Errorf("change %d of %d was promised and is gone", n, promised)
		}
	}
}

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

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeAll(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
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

// A file that is cut while it is mapped gives SIGBUS; the daemon must live.
func TestFileCutWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	if err := errors.Join(l.Commit(lose(0, 64)), l.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"})
	if err != nil {
		t.Fatal(err)
	}
	cutTo(0)(t, path)
	if _, _, err := l.Live(testFile.Key()); !errors.Is(err, ErrDamaged) {
		t.Errorf("Live: %v", err)
	}
	if err := l.Commit(Change{Close: []uint64{1}}); !errors.Is(err, ErrDamaged) {
		t.Errorf("Commit: %v", err)
	}
	if err := l.Close(); !errors.Is(err, ErrDamaged) {
		t.Errorf("Close: %v", err)
	}
}

// Whatever bits flip in the file: an error, or all rows of the last transaction,
// or, if its meta page is hit, of the one before.
func TestFlippedBits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	var c Change
	for n := range int64(400) {
		c = join(c, lose(n*128, 64))
	}
	right := map[string]bool{}
	for _, change := range []Change{c, move(0, 6400, Overwritten)} {
		if err := l.Commit(change); err != nil {
			t.Fatal(err)
		}
		right[show(t, l)] = true
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	good := readAll(t, path)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	refused := 0
	for range rounds(500) {
		bad := bytes.Clone(good)
		for range 1 + rnd.IntN(8) {
			bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
		}
		file := filepath.Join(t.TempDir(), "bad.db")
		writeAll(t, file, bad)
		switch rows, err := tryRows(file); {
		case err != nil:
			refused++
		case !right[rows]:
			t.Errorf("rows that never were: %s", rows)
		}
	}
	if refused == 0 {
		t.Error("no damage was found at all")
	}
}

// tryRows opens a store that may be damaged, as a mount does, and changes it.
func tryRows(path string) (rows string, err error) {
	l, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"})
	if err != nil {
		return "", err
	}
	if rows, err = tell(l); err == nil {
		err = l.Commit(lose(1<<30, 64))
	}
	return rows, errors.Join(err, l.Close())
}

// A page that leads to itself would run bbolt out of stack, and a free page
// that is in use would be written over.
func TestPageInCircle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	var c Change
	for n := range int64(400) {
		c = join(c, lose(n*128, 64))
	}
	if err := errors.Join(l.Commit(c), l.Close()); err != nil {
		t.Fatal(err)
	}
	data := readAll(t, path)
	size, circles := os.Getpagesize(), 0
	for at := 2 * size; at < len(data); at += size {
		if binary.NativeEndian.Uint16(data[at+8:]) == flagBranch {
			binary.NativeEndian.PutUint64(data[at+pageHeader+8:], uint64(at/size))
			circles++
		}
	}
	if circles == 0 {
		t.Fatal("the store has no branch page")
	}
	writeAll(t, path, data)
	if _, err := View(path); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "used twice") {
		t.Errorf("View: %v", err)
	}
}

var newFixture = flag.Bool("new-fixture", false, "make the fixture of this schema, if there is none")

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

const fixtureRows = "1:lost[0 +100) 1-1, 3:overwritten[100 +50) 1-2, 2:lost[150 +3946) 1-1, 4:reinitialized[8192 +64) 3-4"

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
