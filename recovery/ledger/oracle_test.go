package ledger

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const oracleBytes = 300 // length of each file of the oracle

// what a single byte has been through.
type fate struct {
	state          State
	cause          string
	granularity    int64
	first, changed int64
}

// oracle is the ledger as a map of single bytes.
type oracle struct {
	live    map[fileid.ID]map[int64]fate
	history map[fileid.ID]map[int64][]fate
	closed  map[uint64]bool
}

func newOracle() *oracle {
	return &oracle{
		live:    map[fileid.ID]map[int64]fate{},
		history: map[fileid.ID]map[int64][]fate{},
		closed:  map[uint64]bool{},
	}
}

func (o *oracle) apply(c Change, now int64) {
	for _, x := range c.Lost {
		m := at(o.live, x.File)
		for b := x.Range.Off; b < x.Range.End(); b++ {
			old, known := m[b]
			if known && (old.state == Lost || x.Cause == CauseCopied) {
				continue
			}
			first := now
			if known {
				first = old.first
			}
			m[b] = fate{Lost, x.Cause, x.Granularity, first, now}
		}
	}
	for _, mv := range c.Moves {
		m := at(o.live, mv.File)
		for b := mv.Range.Off; b < mv.Range.End(); b++ {
			old, known := m[b]
			if !known || old.state == mv.To {
				continue
			}
			old.state, old.changed = mv.To, now
			if mv.To.Live() {
				m[b] = old
				continue
			}
			delete(m, b)
			if old.cause == CauseCopied {
				continue
			}
			h := at(o.history, mv.File)
			h[b] = append(h[b], old)
		}
	}
	for _, id := range c.Close {
		o.closed[id] = true
	}
}

func at[V any](m map[fileid.ID]map[int64]V, id fileid.ID) map[int64]V {
	if m[id] == nil {
		m[id] = map[int64]V{}
	}
	return m[id]
}

// check compares every byte that l knows with the oracle.
func (o *oracle) check(t *testing.T, l *Ledger) {
	t.Helper()
	live := map[fileid.ID]map[int64]fate{}
	history := map[fileid.ID]map[int64][]fate{}
	ids := map[uint64]bool{}
	for r, err := range l.All(true) {
		if err != nil {
			t.Fatal(err)
		}
		if ids[r.ID] {
			t.Fatalf("two rows have the id %d", r.ID)
		}
		ids[r.ID] = true
		f := fate{r.State, r.Cause, r.Granularity, r.First.UnixNano(), r.Changed.UnixNano()}
		for b := r.Off; b < r.End(); b++ {
			if !r.State.Live() {
				h := at(history, r.File)
				h[b] = append(h[b], f)
				continue
			}
			if old, twice := at(live, r.File)[b]; twice {
				t.Fatalf("byte %d of %v is in two live rows: %v, %v", b, r.File, old, f)
			}
			live[r.File][b] = f
		}
	}
	total := 0
	for _, id := range oracleFiles() {
		total += len(o.live[id])
		if !maps.Equal(live[id], o.live[id]) {
			t.Fatalf("%v: live bytes differ:\n got %v\nwant %v", id, live[id], o.live[id])
		}
		if l.Has(id.Key()) != (len(o.live[id]) > 0) {
			t.Fatalf("Has(%v) = %v with %d live bytes", id, l.Has(id.Key()), len(o.live[id]))
		}
		for b := range int64(oracleBytes) {
			got, want := history[id][b], o.history[id][b]
			sortFates(got)
			sortFates(want)
			if !slices.Equal(got, want) {
				t.Fatalf("%v byte %d: history %v, want %v", id, b, got, want)
			}
		}
		o.checkLive(t, l, id)
	}
	o.checkFiles(t, l)
	if l.Any() != (total > 0) {
		t.Fatalf("Any() = %v with %d live bytes", l.Any(), total)
	}
	for id := range o.closed {
		if !l.Closed(id) {
			t.Fatalf("intent %d is not closed", id)
		}
	}
}

// checkFiles: a file is listed, and kept on disk, as long as it has a row.
func (o *oracle) checkFiles(t *testing.T, l *Ledger) {
	t.Helper()
	want := 0
	for _, id := range oracleFiles() {
		past := 0
		for _, h := range o.history[id] {
			past += len(h)
		}
		if len(o.live[id])+past > 0 {
			want++
		}
	}
	if got := len(l.Files(true)); got != want {
		t.Fatalf("%d files are listed, want %d", got, want)
	}
	l.mu.RLock()
	waiting := len(l.dirty)+len(l.sealed) > 0
	l.mu.RUnlock()
	if waiting {
		return
	}
	if stored, held := records(t, l); stored != want || held != want {
		t.Fatalf("%d files have a record, %d are held, want %d", stored, held, want)
	}
}

func (o *oracle) checkLive(t *testing.T, l *Ledger, id fileid.ID) {
	t.Helper()
	wantLost, wantReinit := &ranges.Set{}, &ranges.Set{}
	for b, f := range o.live[id] {
		if f.state == Lost {
			wantLost.Add(ranges.Range{Off: b, Len: 1})
		} else {
			wantReinit.Add(ranges.Range{Off: b, Len: 1})
		}
	}
	lost, reinit, err := l.Live(id.Key())
	if err != nil {
		t.Fatal(err)
	}
	if lost.String() != wantLost.String() || reinit.String() != wantReinit.String() {
		t.Fatalf("Live(%v) = %v %v, want %v %v", id, lost, reinit, wantLost, wantReinit)
	}
	for off := int64(0); off < oracleBytes; off += 7 {
		r := ranges.Range{Off: off, Len: 23}
		for state, all := range map[State]*ranges.Set{Lost: wantLost, Reinitialized: wantReinit} {
			if got, want := l.Within(id.Key(), r, state), slices.Collect(all.Within(r)); !slices.Equal(got, want) {
				t.Fatalf("Within(%v, %v, %s) = %v, want %v", id, r, state, got, want)
			}
		}
	}
}

func sortFates(f []fate) {
	slices.SortFunc(f, func(x, y fate) int { return strings.Compare(fmt.Sprint(x), fmt.Sprint(y)) })
}

func oracleFiles() []fileid.ID {
	return []fileid.ID{{Ino: 7, Btime: 1, Handle: "1:aa"}, {Ino: 7, Btime: 2, Handle: "1:ab"}, {Ino: 70}, copyOnly()}
}

// copyOnly is a file that loses nothing: it has copies of zeros, which come and go.
func copyOnly() fileid.ID { return fileid.ID{Ino: 7, Btime: 3} }

func randomChange(rnd *rand.Rand, intent uint64) Change {
	files := oracleFiles()
	pick := func() (fileid.ID, ranges.Range) {
		off := rnd.Int64N(oracleBytes)
		return files[rnd.IntN(len(files))], ranges.Between(off, off+rnd.Int64N(min(60, oracleBytes-off)+1))
	}
	var c Change
	for range rnd.IntN(4) {
		id, r := pick()
		cause := []string{"eio", "efault", CauseCopied}[rnd.IntN(3)]
		if id == copyOnly() {
			cause = CauseCopied
		}
		c.Lost = append(c.Lost, Loss{File: id, Path: "f", Range: r, Source: "simulated", Cause: cause, Granularity: 64})
	}
	for range rnd.IntN(4) {
		id, r := pick()
		if id == copyOnly() {
			r = ranges.Range{Len: oracleBytes}
		}
		to := []State{Lost, Reinitialized, Overwritten, Overwritten, Healed}[rnd.IntN(5)]
		c.Moves = append(c.Moves, Move{File: id, Path: "f", Range: r, To: to})
	}
	if rnd.IntN(2) == 0 {
		c.Close = []uint64{intent}
	}
	return c
}

// rounds is how many of n rounds to make: a quarter, unless MENDFS_FULL=1.
func rounds(n int) int {
	if os.Getenv("MENDFS_FULL") == "1" {
		return n
	}
	return max(1, n/4)
}

// Every byte is in the rows that single bytes would be in, whatever happened,
// after reopening, and in a copy of the file taken when Commit had returned.
func TestLedgerAgainstBytes(t *testing.T) {
	for round := range rounds(8) {
		seed := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			t.Logf("seed %d", seed)
			againstBytes(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func againstBytes(t *testing.T, rnd *rand.Rand) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	now := int64(1_000_000)
	start := func() *Ledger {
		l := mustOpen(t, path)
		l.now = func() time.Time { return time.Unix(0, now) }
		return l
	}
	l, o := start(), newOracle()
	for step := range uint64(120) {
		now += rnd.Int64N(3)
		c := randomChange(rnd, step)
		o.apply(c, now)
		write := l.Record
		commit := rnd.IntN(4) == 0
		if commit {
			write = l.Commit
		}
		if err := write(c); err != nil {
			t.Fatal(err)
		}
		o.check(t, l)
		if commit && rnd.IntN(2) == 0 {
			o.check(t, mustOpen(t, copyOf(t, path))) // the daemon dies here
		}
		if rnd.IntN(10) == 0 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = start()
			o.check(t, l)
		}
	}
}

func mustOpen(t testing.TB, path string) *Ledger {
	t.Helper()
	l, err := Open(path, "fs-1", fileid.ID{Ino: 2, Handle: "1:02"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func copyOf(t *testing.T, path string) string {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "copy.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}
