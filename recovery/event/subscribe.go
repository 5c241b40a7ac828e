package event

import (
	"context"
	"io"
)

// subscriberRoom is how many events a subscriber may be behind.
const subscriberRoom = 1024

// subscriber is one who watches; guarded by Log.mu.
type subscriber struct {
	events chan Event
	missed int64
}

// Subscribe is every event from now on, as it is written, until ctx is done or
// the log is closed; then the channel is closed. A subscriber who is too slow
// misses events, and is told so by an event "dropped" with their count.
func (l *Log) Subscribe(ctx context.Context) <-chan Event {
	s := &subscriber{events: make(chan Event, subscriberRoom)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		close(s.events)
		return s.events
	}
	l.subs[s] = struct{}{}
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.unsubscribe(s)
	})
	return s.events
}

func (l *Log) unsubscribe(s *subscriber) {
	if _, ok := l.subs[s]; ok {
		delete(l.subs, s)
		close(s.events)
	}
}

func (l *Log) endSubscriptions() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.subs {
		l.unsubscribe(s)
	}
}

// publish hands an event to all subscribers that have room. Only here is
// anything sent to them, so that room that is seen is there.
func (l *Log) publish(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.subs {
		free := cap(s.events) - len(s.events)
		if free == 0 || free == 1 && s.missed > 0 {
			s.missed++
			continue
		}
		if s.missed > 0 {
			gap := Event{Event: Dropped, Count: s.missed}
			l.complete(&gap, l.now())
			s.events <- gap
			s.missed = 0
		}
		s.events <- e
	}
}

// startPrinter writes human text to w, if there is one, at w's own pace.
// endSubscriptions stops it.
func (l *Log) startPrinter(w io.Writer) {
	if w == nil {
		close(l.human)
		return
	}
	events := l.Subscribe(context.Background())
	go func() {
		defer close(l.human)
		for e := range events {
			_, _ = io.WriteString(w, Line(e)) // whoever reads stderr may be gone: the files have it
			l.steps.Add(1)
		}
	}()
}
