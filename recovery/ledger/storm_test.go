package ledger

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// stormRows is how many lines go bad: what P5 speaks of with MENDFS_FULL=1, and a
// number that shows the same in a run of all tests.
func stormRows() int {
	if os.Getenv("MENDFS_FULL") == "1" {
		return 1_000_000
	}
	return 100_000
}

// memory watches the heap until stop.
type memory struct {
	base       uint64
	peak       atomic.Uint64
	quit, done chan struct{}
}

func watchMemory() *memory {
	m := &memory{base: liveHeap(), quit: make(chan struct{}), done: make(chan struct{})}
	go func() { // until stop
		defer close(m.done)
		for {
			m.sample()
			select {
			case <-m.quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return m
}

func (m *memory) sample() {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m.peak.Store(max(m.peak.Load(), s.HeapInuse))
}

// stop gives what is live more than at the start, and the most that was in use.
func (m *memory) stop() (live, peak uint64) {
	close(m.quit)
	<-m.done
	now := liveHeap()
	return now - min(now, m.base), m.peak.Load()
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// stormLoss is the nth line that goes bad. Ten readers go file by file.
func stormLoss(n, files int) Change {
	const readers = 10
	perFile := stormRows() / files
	i, k := 0, n
	if files > 1 {
		i, k = n%readers+n/readers/perFile*readers, n/readers%perFile
	}
	return Change{Lost: []Loss{{
		File: fileid.ID{Ino: uint64(i) + 100, Btime: 5, Handle: fmt.Sprintf("1:%016x", i)},
		Path: "dir/file-" + strconv.Itoa(i), Cause: "eio", Source: "simulated", Granularity: 64,
		Range: ranges.Range{Off: int64(k) * 128, Len: 64},
	}}}
}

// A storm takes 100 bytes a row and what a transaction needs, until the garbage
// collector runs twice that; it is all there afterwards, and opening that takes
// the memory of a list of the files.
func TestStorm(t *testing.T) {
	for _, files := range []int{1, 10_000} {
		t.Run(fmt.Sprint(files, " files"), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			l := mustOpen(t, path)
			m := watchMemory()
			start := time.Now()
			waiting := 0
			for n := range stormRows() {
				if err := l.Record(stormLoss(n, files)); err != nil {
					t.Fatal(err)
				}
				waiting = max(waiting, l.Waiting())
			}
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			live, peak := m.stop()
			t.Logf("%d rows in %d files, on disk in %v: at most %d waited; %d bytes a row, %d MiB in use at most",
				stormRows(), files, took, waiting, live/uint64(stormRows()), peak>>20)
			if most := uint64(100*stormRows() + 400*files + 4<<20); live > most {
				t.Errorf("%d bytes are live, want at most %d", live, most)
			}
			if most := uint64(2*100*stormRows() + 64<<20); peak-m.base > most {
				t.Errorf("%d bytes were in use, want at most %d", peak-m.base, most)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			checkStorm(t, path, files)
		})
	}
}

func checkStorm(t *testing.T, path string, files int) {
	m := watchMemory()
	start := time.Now()
	l := mustOpen(t, path)
	took := time.Since(start)
	live, peak := m.stop()
	t.Logf("opened in %v, %d bytes live, %d MiB in use at most", took, live, peak>>20)
	if most := uint64(600*files + 4<<20); live > most { // not a byte of any row
		t.Errorf("%d bytes are live after opening, want at most %d", live, most)
	}
	if most := uint64(48 << 20); peak-m.base > most {
		t.Errorf("opening took %d bytes, want at most %d", peak-m.base, most)
	}
	seen := 0
	for i := range files {
		lost, _, err := l.Live(stormLoss(i%10+i/10*10*(stormRows()/files), files).Lost[0].File.Key())
		if err != nil {
			t.Fatal(err)
		}
		seen += lost.Count()
	}
	if seen != stormRows() {
		t.Errorf("%d rows, want %d", seen, stormRows())
	}
}

// Ten readers that meet many files in turn, a line of each at a time, is what
// suits the store least: no transaction grows with the number of files.
func TestBatchesAreBounded(t *testing.T) {
	l := mustOpen(t, filepath.Join(t.TempDir(), "ledger.db"))
	const files = 20_000
	var most int
	for n := range 2 * files {
		x := lose(int64(n/files)*128, 64)
		x.Lost[0].File = fileid.ID{Ino: uint64(n % files)}
		if err := l.Record(x); err != nil {
			t.Fatal(err)
		}
		l.mu.RLock()
		for _, b := range l.sealed {
			most = max(most, b.rows+rowsPerFile*len(b.files))
		}
		l.mu.RUnlock()
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if most == 0 || most > batchRows+rowsPerFile+1 {
		t.Errorf("a batch has weight %d, want at most %d", most, batchRows)
	}
	lost := 0
	for _, err := range l.All(false) {
		if err != nil {
			t.Fatal(err)
		}
		lost++
	}
	if lost != 2*files {
		t.Errorf("%d rows, want %d", lost, 2*files)
	}
}

// P5: a disk that hangs holds nobody up for ever before the limit, and a change
// of more rows than a batch has is one transaction.
func TestHangingDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	l.disk.Lock() // a transaction is under way
	l.mu.Lock()
	l.writing = time.Now()
	l.mu.Unlock()
	const rows = 3 * paceAt
	var many Change
	for n := range int64(rows) {
		many.Lost = append(many.Lost, lose(n*128, 64).Lost[0])
	}
	if err := l.Record(many); err != nil {
		t.Fatal(err)
	}
	for n := range int64(5000) { // each would wait for the disk
		if err := l.Record(lose(1<<40+n*128, 64)); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Waiting(); got != rows+5000 {
		t.Errorf("%d rows wait, want %d", got, rows+5000)
	}
	l.mu.Lock()
	if n := l.sealed[0].rows; n != rows {
		t.Errorf("the change is torn: %d of its rows in one batch, want %d", n, rows)
	}
	l.writing = time.Time{}
	l.mu.Unlock()
	l.disk.Unlock()
	if err := l.Flush(); err != nil || l.Waiting() != 0 {
		t.Errorf("%v, %d rows wait", err, l.Waiting())
	}
	lost, _, err := mustOpen(t, copyOf(t, path)).Live(testFile.Key())
	if err != nil || lost.Count() != rows+5000 {
		t.Errorf("%d rows are there, want %d; %v", lost.Count(), rows+5000, err)
	}
}

// A clock that is set back turns nothing round: no row changes before it was
// lost, and none of a mount before a row that was changed before it.
func TestClockGoesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	second := int64(1000)
	clock := func() time.Time { second -= 100; return time.Unix(second, 0) }
	l.now = clock
	for _, c := range []Change{lose(0, 64), lose(128, 64), move(0, 32, Reinitialized)} {
		if err := l.Commit(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, path) // and back further while it was not mounted
	l.now = clock
	if err := l.Commit(join(move(0, 64, Overwritten), lose(256, 64))); err != nil {
		t.Fatal(err)
	}
	const want = "3:overwritten[0 +64) 900-900, 2:lost[128 +64) 900-900, 4:lost[256 +64) 600-600"
	if got := show(t, l); got != want {
		t.Errorf("rows\n got %s\nwant %s", got, want)
	}
}
