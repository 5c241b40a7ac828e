package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

var testFile = fileid.ID{Ino: 1311, Btime: 5, Handle: "1:0102"}

func lose(off, length int64) Change {
	return Change{Lost: []Loss{{File: testFile, Path: "a/b", Cause: "eio", Source: "kernel",
		Granularity: 4096, Range: ranges.Range{Off: off, Len: length}}}}
}

func move(off, length int64, to State) Change {
	return Change{Moves: []Move{{File: testFile, Path: "a/b", To: to, Range: ranges.Range{Off: off, Len: length}}}}
}

func join(cs ...Change) (all Change) {
	for _, c := range cs {
		all.Lost = append(all.Lost, c.Lost...)
		all.Moves = append(all.Moves, c.Moves...)
		all.Close = append(all.Close, c.Close...)
	}
	return all
}

// show prints rows as "id:state[off +len) first-changed", times in seconds.
func show(t *testing.T, l *Ledger) string {
	t.Helper()
	rows, err := tell(l)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func tell(l *Ledger) (rows string, err error) {
	var out []string
	for r, err := range l.Rows(testFile.Key(), true) {
		if err != nil {
			return "", err
		}
		out = append(out, fmt.Sprintf("%d:%s%v %d-%d", r.ID, r.State, r.Range, r.First.Unix(), r.Changed.Unix()))
	}
	return strings.Join(out, ", "), nil
}

type rowsCase struct {
	name    string
	changes []Change // one a second
	want    string
}

func TestRows(t *testing.T) {
	checkRows(t, []rowsCase{
		{"a run of pages in one change is one row",
			[]Change{join(lose(0, 4096), lose(8192, 4096), lose(4096, 4096))},
			"1:lost[0 +12288) 1-1"},
		{"later neighbours are rows of their own",
			[]Change{lose(0, 64), lose(64, 64)},
			"1:lost[0 +64) 1-1, 2:lost[64 +64) 2-2"},
		{"bytes already lost stay as they are",
			[]Change{lose(64, 64), lose(0, 256)},
			"2:lost[0 +64) 2-2, 1:lost[64 +64) 1-1, 3:lost[128 +128) 2-2"},
		{"overwriting the middle leaves two rows",
			[]Change{lose(0, 300), move(100, 50, Overwritten)},
			"1:lost[0 +100) 1-1, 3:overwritten[100 +50) 1-2, 2:lost[150 +150) 1-1"},
		{"a repair in pieces is one row",
			[]Change{lose(0, 300), join(move(0, 100, Reinitialized), move(100, 100, Reinitialized))},
			"2:reinitialized[0 +200) 1-2, 1:lost[200 +100) 1-1"},
		{"an overwrite in pieces is one row of history",
			[]Change{lose(0, 300), join(move(0, 100, Overwritten), move(100, 200, Overwritten))},
			"2:overwritten[0 +300) 1-2"},
		{"a whole row keeps its id through its states",
			[]Change{lose(0, 64), move(0, 64, Reinitialized), move(0, 64, Healed)},
			"1:healed[0 +64) 1-3"},
		{"reinitialized bytes that are lost again keep their first time",
			[]Change{lose(0, 64), move(0, 64, Reinitialized), lose(0, 128)},
			"1:lost[0 +64) 1-3, 2:lost[64 +64) 3-3"},
		{"losing and overwriting in one change leaves history only",
			[]Change{join(lose(0, 4096), move(0, 4096, Overwritten))},
			"1:overwritten[0 +4096) 1-1"},
		{"lost, overwritten and lost again",
			[]Change{lose(0, 64), move(0, 64, Overwritten), lose(0, 64)},
			"1:overwritten[0 +64) 1-2, 2:lost[0 +64) 3-3"},
		{"bytes in no row are left alone",
			[]Change{move(0, 4096, Overwritten), lose(10, 10), move(20, 4096, Reinitialized), lose(0, 0)},
			"1:lost[10 +10) 2-2"},
	})
}

func checkRows(t *testing.T, cases []rowsCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			l := mustOpen(t, path)
			second := int64(0)
			l.now = func() time.Time { second++; return time.Unix(second, 0) }
			for _, change := range c.changes {
				if err := l.Record(change); err != nil {
					t.Fatal(err)
				}
			}
			if got := show(t, l); got != c.want {
				t.Errorf("in memory\n got %s\nwant %s", got, c.want)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got := show(t, mustOpen(t, path)); got != c.want {
				t.Errorf("reopened\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestMalformedChangeIsRefusedWhole(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  Change
	}{
		{"negative offset", lose(-1, 10)},
		{"negative length", lose(0, -1)},
		{"past the largest offset", lose(1<<62, 1<<62)},
		{"unknown state", move(0, 10, "gone")},
		{"malformed move", move(-4, 2, Overwritten)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
			if err := l.Commit(join(lose(0, 64), c.bad)); err == nil {
				t.Error("it was taken")
			}
			if l.Any() {
				t.Errorf("half of it was applied: %s", show(t, l))
			}
		})
	}
}

func TestPathIsTheLastSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	if err := l.Record(lose(0, 64)); err != nil {
		t.Fatal(err)
	}
	c := move(0, 32, Overwritten)
	c.Moves[0].Path = "renamed"
	if err := l.Commit(c); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for r, err := range mustOpen(t, path).All(true) {
		if err != nil || r.Path != "renamed" {
			t.Errorf("row %v has path %q, error %v", r.Range, r.Path, err)
		}
	}
}

// Files lists who has live rows, and with history who had them, without a look at rows.
func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	now := lose(0, 64)
	gone := lose(0, 64)
	now.Lost[0].Path, gone.Lost[0].Path = "b", "a"
	gone.Lost[0].File = fileid.ID{Ino: 77}
	for _, c := range []Change{now, gone, {Moves: []Move{{File: gone.Lost[0].File, Range: ranges.Between(0, math.MaxInt64), To: Overwritten}}}} {
		if err := l.Commit(c); err != nil {
			t.Fatal(err)
		}
	}
	live, past := File{now.Lost[0].File, "b"}, File{gone.Lost[0].File, "a"}
	for _, of := range []*Ledger{l, mustOpen(t, copyOf(t, path))} {
		if got := of.Files(false); !slices.Equal(got, []File{live}) {
			t.Errorf("live: %v", got)
		}
		if got := of.Files(true); !slices.Equal(got, []File{past, live}) {
			t.Errorf("with history: %v", got)
		}
	}
}

func TestRowJSON(t *testing.T) {
	at := time.Unix(1, 5).UTC()
	for _, c := range []struct{ name, path, want string }{
		{"UTF-8", "a/é", `"path":"a/é"`},
		{"not UTF-8", "a/\xff", `"path_b64":"YS//"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Row{ID: 3, File: testFile, Path: c.path, Range: ranges.Range{Off: 64, Len: 128},
				State: Lost, Cause: "eio", Source: "kernel", Granularity: 64, First: at, Changed: at}
			text, err := json.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{c.want, `"offset":64,"length":128`, `"state":"lost"`} {
				if !strings.Contains(string(text), want) {
					t.Errorf("%s lacks %s", text, want)
				}
			}
			if strings.Count(string(text), `"path`) != 1 {
				t.Errorf("%s does not have one path", text)
			}
			var out Row
			if err := json.Unmarshal(text, &out); err != nil || out != in {
				t.Errorf("came back as %+v, error %v", out, err)
			}
		})
	}
}

func TestIntentsStayClosedUntilForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	if err := l.Commit(Change{Close: []uint64{5, 6, 1 << 60}}); err != nil {
		t.Fatal(err)
	}
	l.Forget(6, 99)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, path)
	for id, want := range map[uint64]bool{5: true, 6: false, 1 << 60: true, 99: false} {
		if l.Closed(id) != want {
			t.Errorf("Closed(%d) = %v, want %v", id, !want, want)
		}
	}
}

// P5: a range is on disk within a second.
func TestRecordIsDurableWithinASecond(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	start := time.Now()
	if err := l.Record(lose(0, 64)); err != nil {
		t.Fatal(err)
	}
	for l.Waiting() > 0 {
		if time.Since(start) > time.Second {
			t.Fatal("still waiting after a second")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := show(t, mustOpen(t, copyOf(t, path))); !strings.HasPrefix(got, "1:lost[0 +64)") {
		t.Errorf("on disk: %q", got)
	}
}

func TestConcurrentCommitsShareTransactions(t *testing.T) {
	const writers, each = 64, 20
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	before := lastTransaction(t, l)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				off := int64(w*each+i) * 8192
				c := lose(off, 64)
				c.Close = []uint64{uint64(off)}
				if err := l.Commit(c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := lastTransaction(t, l) - before; n > writers*each/4 {
		t.Errorf("%d commits took %d transactions", writers*each, n)
	}
	copied := mustOpen(t, copyOf(t, path))
	if lost, _, err := copied.Live(testFile.Key()); err != nil || lost.Count() != writers*each {
		t.Errorf("%d of %d ranges are durable, error %v", lost.Count(), writers*each, err)
	}
}

func lastTransaction(t *testing.T, l *Ledger) (id int) {
	t.Helper()
	if err := l.store.view(func(tx *bbolt.Tx) error { id = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return id
}

// For the race detector: every method against every other.
func TestConcurrentUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	if err := l.Commit(lose(0, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, path) // not loaded yet: loading takes part
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			for i := range int64(60) {
				off := w<<18 + i*4096
				err := errors.Join(
					l.Record(lose(1<<20+off, 64)),
					l.Commit(join(move(off, 64, Overwritten), Change{Close: []uint64{uint64(i)}})))
				if err != nil {
					t.Error(err)
				}
				l.Forget(uint64(i))
				l.Waiting()
			}
		})
		wg.Go(func() {
			for range 60 {
				lost, _, err := l.Live(testFile.Key())
				if err != nil || lost.Empty() || !l.Any() || !l.Has(testFile.Key()) || l.Health() != nil {
					t.Errorf("Live: %v, error %v, health %v", lost, err, l.Health())
				}
				for _, err := range l.All(true) {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	var history int64
	for r := range l.All(true) {
		if r.State == Overwritten {
			history += r.Len
		}
	}
	if want := int64(4 * 60 * 64); history != want {
		t.Errorf("history has %d bytes, want %d", history, want)
	}
}

func TestClosedLedgerTakesNothing(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(lose(0, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Record: %v", err)
	}
}

func TestWalkStopsWhenAsked(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
	if err := l.Record(join(lose(0, 1), lose(10, 1), lose(20, 1))); err != nil {
		t.Fatal(err)
	}
	var seen []int64
	for r := range l.All(false) {
		seen = append(seen, r.Off)
		if len(seen) == 2 {
			break
		}
	}
	if !slices.Equal(seen, []int64{0, 10}) {
		t.Errorf("saw %v", seen)
	}
}
