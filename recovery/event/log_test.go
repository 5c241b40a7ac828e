package event

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
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

const testRoom = 3000

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
