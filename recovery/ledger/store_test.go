package ledger

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

const fixtureRows = "1:lost[0 +100) 1-1, 3:overwritten[100 +50) 1-2, 2:lost[150 +3946) 1-1, 4:reinitialized[8192 +64) 3-4"
