package event

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)} }

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// sink is a file in memory that can hang or fail.
type sink struct {
	mu     sync.Mutex
	data   strings.Builder
	fail   error
	gate   chan struct{} // if not nil: nothing is written until it is closed
	closed bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		n := len(p) / 2
		s.data.Write(p[:n]) // a disk that is full takes a part
		return n, s.fail
	}
	return s.data.Write(p)
}

func (s *sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *sink) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// lines is what was written, without what is torn.
func (s *sink) lines() (out []Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, err := range lines(strings.NewReader(s.data.String())) {
		if err == nil {
			out = append(out, e)
		}
	}
	return out
}

// wait waits until n lines are written.
func (s *sink) wait(t *testing.T, n int) []Event {
	t.Helper()
	for range 500 {
		if got := s.lines(); len(got) >= n {
			return got
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d lines after 5 s, want %d", len(s.lines()), n)
	return nil
}

func startTest(t *testing.T, s *sink, human io.Writer, now func() time.Time) *Log {
	t.Helper()
	l := start([]*lineFile{{w: s, path: "sink"}}, human, now)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func lost(off int64) Event {
	return Event{Event: Lost, Path: "f", Dev: "259:0", Ino: 7, Offset: off, Length: 64, Action: "zero-filled"}
}

func TestEmitFillsIn(t *testing.T) {
	s, c := &sink{}, newClock()
	l := startTest(t, s, nil, c.read)
	e := lost(0)
	e.Path, e.Pid = "a/\xff", uint32(os.Getpid())
	l.Emit(e)
	l.Emit(lost(64))
	got := s.wait(t, 2)
	own, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	first := got[0]
	if first.Version != 1 || len(first.ID) != 26 || !first.Time.Equal(c.read()) || first.Count != 1 ||
		first.Path != "" || string(first.PathB64) != "a/\xff" || first.Comm != strings.TrimSpace(string(own)) ||
		first.Next != "mendfs lost MOUNTPOINT" || got[1].Next != "mendfs lost f" {
		t.Errorf("filled in: %+v", first)
	}
	if got[1].ID <= first.ID {
		t.Errorf("ids do not grow: %s, %s", first.ID, got[1].ID)
	}
}

func TestIDsGrowWhenTheClockGoesBack(t *testing.T) {
	s, c := &sink{}, newClock()
	l := startTest(t, s, nil, c.read)
	for n := range int64(100) {
		l.Emit(lost(n))
		c.advance(-time.Second)
	}
	var ids []string
	for _, e := range s.wait(t, 100) {
		ids = append(ids, e.ID)
	}
	if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 100 {
		t.Error("ids are not in order, or not unique")
	}
}

func TestRepeatsFold(t *testing.T) {
	type step struct {
		after time.Duration
		event Event
	}
	other := lost(0)
	other.Action = "passed-through"
	for _, c := range []struct {
		name  string
		steps []step
		then  time.Duration
		want  []int64 // the counts of the lines
		ids   int     // how many different events they are
	}{
		{"once is one line", []step{{0, lost(0)}}, 11 * time.Second, []int64{1}, 1},
		{"repeats are one more line", []step{{0, lost(0)}, {time.Second, lost(0)}, {9 * time.Second, lost(0)}}, 11 * time.Second, []int64{1, 3}, 1},
		{"before it is quiet nothing more is said", []step{{0, lost(0)}, {time.Second, lost(0)}}, 9 * time.Second, []int64{1}, 1},
		{"after quiet it is a new event", []step{{0, lost(0)}, {11 * time.Second, lost(0)}}, 0, []int64{1, 1}, 2},
		{"other ranges are other events", []step{{0, lost(0)}, {0, lost(64)}}, 11 * time.Second, []int64{1, 1}, 2},
		{"other actions are other events", []step{{0, lost(0)}, {0, other}}, 11 * time.Second, []int64{1, 1}, 2},
		{"what never rests is told once a minute", []step{{0, lost(0)}, {9 * time.Second, lost(0)}, {9 * time.Second, lost(0)},
			{9 * time.Second, lost(0)}, {9 * time.Second, lost(0)}, {9 * time.Second, lost(0)}, {9 * time.Second, lost(0)},
			{9 * time.Second, lost(0)}}, 0, []int64{1, 7, 1}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, clock := &sink{}, newClock()
			l := startTest(t, s, nil, clock.read)
			for _, step := range c.steps {
				clock.advance(step.after)
				l.sweep(false)
				l.Emit(step.event)
				waitWritten(t, l)
			}
			clock.advance(c.then)
			l.sweep(false)
			waitWritten(t, l)
			var counts []int64
			ids := map[string]bool{}
			for _, e := range s.lines() {
				counts = append(counts, e.Count)
				ids[e.ID] = true
				if (e.Count > 1) != (e.First != nil && e.Last != nil && e.Last.After(*e.First)) {
					t.Errorf("count %d, first %v, last %v", e.Count, e.First, e.Last)
				}
			}
			if !slices.Equal(counts, c.want) || len(ids) != c.ids {
				t.Errorf("counts %v of %d events, want %v of %d", counts, len(ids), c.want, c.ids)
			}
		})
	}
}

// waitWritten waits until the writer has nothing to do.
func waitWritten(t *testing.T, l *Log) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		idle := len(l.queue) == 0 && !l.busy
		l.mu.Unlock()
		if idle {
			return
		}
	}
	t.Fatal("the writer does not come to an end")
}

func TestCloseWritesCounts(t *testing.T) {
	s, human := &sink{}, &sink{}
	l := startTest(t, s, human, newClock().read)
	for range 5 {
		l.Emit(lost(0))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Emit(lost(64)) // too late, but counted
	got := s.lines()
	if last := got[len(got)-1]; last.Count != 5 || !s.closed {
		t.Errorf("last line %+v, closed %v", last, s.closed)
	}
	if n := l.Counts()[Lost]; n != 6 {
		t.Errorf("counted %d", n)
	}
	if text := human.data.String(); !strings.Contains(text, "lost 64 bytes of f [0 +64)") || !strings.Contains(text, "next: mendfs lost f\n") {
		t.Errorf("human text: %s", text)
	}
}

func TestOutageIsToldOnce(t *testing.T) {
	s, c := &sink{}, newClock()
	l := startTest(t, s, nil, c.read)
	outage := func(ino uint64, err string) {
		l.Emit(Event{Event: Outage, Ino: ino, Error: err})
		c.advance(2 * time.Minute)
		l.sweep(false)
	}
	for ino := range uint64(20) {
		outage(ino, "EIO")
	}
	outage(1, "ESHUTDOWN")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.lines(); len(got) != 1 || got[0].Error != "EIO" || l.Counts()[Outage] != 21 {
		t.Errorf("%d lines, %d counted: %+v", len(got), l.Counts()[Outage], got)
	}
}

func TestNextOutageIsTold(t *testing.T) {
	s := &sink{}
	l := startTest(t, s, nil, nil)
	for ino := range uint64(3) {
		l.Emit(Event{Event: Outage, Ino: ino, Error: "EIO"})
		l.Emit(Event{Event: Outage, Ino: 50, Error: "EIO"})
		l.OutageOver()
	}
	if got := s.wait(t, 3); got[2].Ino != 2 || got[2].Count != 1 {
		t.Errorf("third line: %+v", got[2])
	}
}

const testRoom = 3000

func TestEmitNeverBlocks(t *testing.T) {
	for _, c := range []struct {
		name        string
		file, human bool // which of them hangs
	}{{"file hangs", true, false}, {"human text hangs", false, true}, {"both hang", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			gate := make(chan struct{})
			s, human := &sink{}, &sink{}
			if c.file {
				s.gate = gate
			}
			if c.human {
				human.gate = gate
			}
			l := startTest(t, s, human, nil)
			const n = testRoom + 5000
			l.mu.Lock()
			l.room = testRoom
			l.mu.Unlock()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for off := range int64(n) {
					l.Emit(lost(off))
				}
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("Emit blocks")
			}
			close(gate)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			checkAllAccounted(t, s.lines(), l.Counts(), n)
		})
	}
}

// checkAllAccounted checks that as many events as may wait are written, in
// order, and that the rest is counted.
func checkAllAccounted(t *testing.T, got []Event, counts map[Kind]int64, n int64) {
	t.Helper()
	var written, dropped int64
	last := int64(-1)
	for i, e := range got {
		switch {
		case e.Event == Dropped:
			dropped += e.Count
		case e.Offset <= last:
			t.Fatalf("line %d has offset %d after %d: not in order", i, e.Offset, last)
		default:
			written++
			last = e.Offset
		}
	}
	if written < testRoom || written+dropped != n || counts[Lost] != n || counts[Dropped] != dropped {
		t.Errorf("%d written, %d dropped, of %d; counts %v", written, dropped, n, counts)
	}
}

// A storm of different events neither grows the table nor is dropped, as long
// as the file takes it: the counting of the oldest ends, with its count.
func TestOldestMakesRoom(t *testing.T) {
	s, c := &sink{}, newClock()
	l := startTest(t, s, nil, c.read)
	l.mu.Lock()
	l.room = testRoom
	l.mu.Unlock()
	const n = 5 * testRoom
	for off := range int64(n) {
		for range 1 + off%3 {
			l.Emit(lost(off))
		}
		if off%(testRoom/2) == 0 {
			waitWritten(t, l)
		}
	}
	l.mu.Lock()
	open, aged := len(l.open), l.byAge.Len()
	l.mu.Unlock()
	if open > testRoom || open != aged {
		t.Errorf("%d events are being counted, %d by age, want at most %d", open, aged, testRoom)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	firsts, counts := map[int64]bool{}, map[int64]int64{}
	for _, e := range s.lines() {
		if !firsts[e.Offset] && e.Count > 1+e.Offset%3 || e.Event != Lost {
			t.Errorf("%+v", e)
		}
		firsts[e.Offset] = true
		counts[e.Offset] = e.Count
	}
	for off := range int64(n) {
		if counts[off] != 1+off%3 {
			t.Errorf("offset %d: the last line has count %d, want %d", off, counts[off], 1+off%3)
		}
	}
	if got := l.Counts(); got[Lost] != 2*n || got[Dropped] != 0 {
		t.Errorf("counts %v", got)
	}
}

// What a storm leaves in memory is bounded, however many events it had.
func TestStormMemory(t *testing.T) {
	const most = 16 << 20
	l, err := New(Options{Path: filepath.Join(t.TempDir(), "events.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	uid := uint32(999)
	for off := range int64(200_000) {
		e := lost(off * 128)
		e.Path = fmt.Sprint("some/directory/with/a/file-", off%10_000)
		e.Ino, e.Dev, e.FS, e.UID, e.Action = uint64(off%10_000), fmt.Sprint("259:", off%2), "6f1c5a0e-uuid", &uid, "zero-filled"
		l.Emit(e)
	}
	if live := heap() - before; live > most {
		t.Errorf("%d bytes are held, want at most %d", live, most)
	} else {
		t.Logf("%d KiB are held", live>>10)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if c := l.Counts(); c[Lost] != 200_000 {
		t.Errorf("counts %v", c)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestCloseGivesUpOnAWriterThatHangs(t *testing.T) {
	gate := make(chan struct{})
	s := &sink{gate: gate}
	l := start([]*lineFile{{w: s, path: "sink"}}, nil, nil)
	l.Emit(lost(0))
	if err := l.Close(); err == nil {
		t.Error("no error")
	}
	close(gate)
	<-l.done // or the goroutine would outlive the test
}

// slowly is a sink that takes its time, and takes everything.
type slowly struct{ *sink }

func (s slowly) Write(p []byte) (int, error) {
	time.Sleep(closePatience / 4)
	return s.sink.Write(p)
}

func TestCloseWaitsForAWriterThatIsSlow(t *testing.T) {
	s := &sink{}
	l := start([]*lineFile{{w: slowly{s}, path: "sink"}}, nil, nil)
	for off := range int64(6) { // longer than its patience with one that hangs
		l.Emit(lost(off))
	}
	if err := l.Close(); err != nil || len(s.lines()) != 6 {
		t.Errorf("%v, %d lines", err, len(s.lines()))
	}
}

func TestFailedWritesAreCounted(t *testing.T) {
	s, c := &sink{fail: unix.ENOSPC}, newClock()
	l := startTest(t, s, nil, c.read)
	for off := range int64(10) {
		l.Emit(lost(off))
	}
	waitWritten(t, l)
	if err := l.Health(); !errors.Is(err, unix.ENOSPC) || len(s.lines()) != 0 {
		t.Fatalf("health %v, %d lines", err, len(s.lines()))
	}
	l.sweep(false) // a try that fails too
	waitWritten(t, l)
	s.setFail(nil)
	l.Emit(lost(100))
	waitWritten(t, l)
	c.advance(time.Second)
	l.sweep(false)
	waitWritten(t, l)
	var dropped int64
	for _, e := range s.lines() {
		if e.Event == Dropped {
			dropped += e.Count
		}
	}
	if dropped != 10 || l.Counts()[Dropped] != 10 || l.Health() != nil {
		t.Errorf("%d dropped, counted %d, health %v", dropped, l.Counts()[Dropped], l.Health())
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	main, extra := filepath.Join(dir, "events.jsonl"), filepath.Join(dir, "extra")
	const torn = `{"version":1,"id":"01","ti`
	for _, path := range []string{main, extra} {
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n := range int64(2) { // the second time the files end in a newline
		l, err := New(Options{Path: main, Extra: extra})
		if err != nil {
			t.Fatal(err)
		}
		l.Emit(lost(n))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{main, extra} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text, ok := strings.CutPrefix(string(data), torn+"\n{")
		if !ok || strings.Count(text, "\n") != 2 || strings.Contains(text, "\n\n") {
			t.Errorf("%s: %s", path, data)
		}
	}
}

func TestNewFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	o := Options{Path: filepath.Join(dir, "events.jsonl"), Extra: filepath.Join(dir, "extra")}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l.Emit(lost(0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{o.Path, o.Extra} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Size() == 0 {
			t.Errorf("%s: %v, error %v", path, st, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no directory":          {Path: filepath.Join(dir, "none", "events.jsonl")},
		"a directory":           {Extra: dir},
		"pipe without a reader": {Extra: pipe},
	} {
		if l, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
			_ = l.Close() // the test has failed already
		}
	}
}

func TestSubscribers(t *testing.T) {
	s := &sink{}
	l := startTest(t, s, nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	gone, slow := l.Subscribe(ctx), l.Subscribe(t.Context())
	l.Emit(lost(0))
	if e := <-gone; e.Offset != 0 || e.ID == "" {
		t.Errorf("got %+v", e)
	}
	cancel()
	if _, ok := <-gone; ok {
		t.Error("still subscribed")
	}
	const n = subscriberRoom + 500
	for off := range int64(n) {
		l.Emit(lost(off + 1))
	}
	s.wait(t, n+1)
	<-slow // room for the gap
	<-slow // and for the next event
	l.Emit(lost(n + 1))
	s.wait(t, n+2)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	seen, missed := int64(2), int64(0)
	for e := range slow {
		if e.Event == Dropped {
			missed += e.Count
		} else {
			seen++
		}
	}
	if seen+missed != n+2 || missed != 501 {
		t.Errorf("%d seen, %d missed, of %d", seen, missed, n+2)
	}
	if _, ok := <-l.Subscribe(t.Context()); ok {
		t.Error("a closed log has events")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := &sink{}
	l := startTest(t, s, io.Discard, nil)
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			events := l.Subscribe(ctx)
			for off := range int64(500) {
				l.Emit(lost(off / 2))
				l.Emit(Event{Event: Outage, Ino: uint64(w), Error: "EIO"})
				l.Counts()
				l.OutageOver()
			}
			cancel()
			for range events { // until it is closed
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	total := map[string]int64{}
	for _, e := range s.lines() {
		if e.Event == Lost {
			total[e.ID] = e.Count // the newest line counts
		}
	}
	var sum int64
	for _, n := range total {
		sum += n
	}
	if sum != 4*500 || l.Counts()[Lost] != sum {
		t.Errorf("%d written, %d counted, want %d", sum, l.Counts()[Lost], 4*500)
	}
}
