package event

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

const (
	// longestLine holds an event many times over: a path has 4096 bytes.
	longestLine = 1 << 18
	// settled is how long after an event no newer line of it can come: its
	// repeats are counted for a minute, and a writer may be late.
	settled = 5 * time.Minute
)

// LineError is a line of an event log that can't be understood: torn by a
// crash, or written by a newer version. The walk goes on behind it.
type LineError struct {
	Line int // counted from 1
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("event log, line %d: %v", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// Decode is the event in one line of JSON.
func Decode(line []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		return Event{}, err
	}
	switch {
	case e.Version > Version:
		return Event{}, fmt.Errorf("it has schema version %d, and this mendfs knows %d: use the newer one", e.Version, Version)
	case e.Version < 1 || e.ID == "" || e.Event == "":
		return Event{}, errors.New("it is no event")
	}
	return e, nil
}

// Scan yields the events of r, a file of JSON Lines, that happened or were
// repeated at or after since, oldest first. Lines of the same event are folded
// to the newest. A *LineError does not end the walk, any other error does. A
// last line without a newline that is not whole was being written: it is left
// out.
func Scan(r io.Reader, since time.Time) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		w := window{at: map[string]int{}}
		for e, err := range lines(r) {
			var line *LineError
			switch {
			case err == nil && !w.add(e, since, yield):
				return
			case errors.As(err, &line):
				if !yield(Event{}, err) {
					return
				}
			case err != nil:
				w.release(len(w.events), since, yield)
				yield(Event{}, err)
				return
			}
		}
		w.release(len(w.events), since, yield)
	}
}

// window holds the events of which newer lines may still come, in order.
type window struct {
	events []Event
	first  int            // number of events[0], counted from the start of the file
	at     map[string]int // id → number
}

// add takes the next event and yields those that are settled now.
func (w *window) add(e Event, since time.Time, yield func(Event, error) bool) bool {
	if n, ok := w.at[e.ID]; ok {
		w.events[n-w.first] = e
		return true
	}
	w.at[e.ID] = w.first + len(w.events)
	w.events = append(w.events, e)
	n := 0
	for n < len(w.events)-1 && e.Time.Sub(latest(w.events[n])) > settled {
		n++
	}
	return w.release(n, since, yield)
}

// release yields the first n events, without those that are too old.
func (w *window) release(n int, since time.Time, yield func(Event, error) bool) bool {
	for _, e := range w.events[:n] {
		delete(w.at, e.ID)
		if !latest(e).Before(since) && !yield(e, nil) {
			return false
		}
	}
	w.events = w.events[n:]
	w.first += n
	return true
}

// latest is when the event, or the last of its repeats, happened.
func latest(e Event) time.Time {
	if e.Last != nil {
		return *e.Last
	}
	return e.Time
}

// lines yields the events of r line by line.
func lines(r io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		in := bufio.NewReaderSize(r, longestLine)
		for number := 1; ; number++ {
			line, err := in.ReadSlice('\n')
			tooLong := errors.Is(err, bufio.ErrBufferFull)
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = in.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				yield(Event{}, fmt.Errorf("reading the event log: %w", err))
				return
			}
			last := err != nil
			if !yieldLine(line, number, tooLong, last, yield) || last {
				return
			}
		}
	}
}

func yieldLine(line []byte, number int, tooLong, last bool, yield func(Event, error) bool) bool {
	if tooLong {
		return yield(Event{}, &LineError{number, fmt.Errorf("it is longer than %d bytes", longestLine)})
	}
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return true
	}
	e, err := Decode(line)
	if err == nil {
		return yield(e, nil)
	}
	if last && !json.Valid(line) {
		return true
	}
	return yield(Event{}, &LineError{number, err})
}
