package event

import (
	"slices"
	"strings"
	"testing"
	"time"
)

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
