package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"time"
)

// write is the writer goroutine. Close stops it.
func (l *Log) write() {
	defer close(l.done)
	var names processes
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.wake:
		case <-tick.C:
			l.sweep(false)
		case <-l.quit:
			l.drain(&names)
			l.sweep(true)
			l.drain(&names)
			if err := closeFiles(l.files); err != nil {
				l.note(err)
			}
			l.endSubscriptions()
			return
		}
		l.drain(&names)
	}
}

// sweep ends the counting of repeats that have been quiet, or counted for
// long enough; of all, if it is the last.
func (l *Log) sweep(last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, x := range l.open {
		ripe := last || now.Sub(x.last) >= quietFor || now.Sub(x.event.Time) >= countFor
		if x.queued || !ripe {
			continue
		}
		l.fold(x)
	}
	if l.dropped.count > 0 && len(l.queue) < l.room {
		x := l.dropped
		l.dropped = entry{}
		l.complete(&x.event, now)
		l.enqueue(&x)
	}
}

// drain writes the queue until it is empty.
func (l *Log) drain(names *processes) {
	for {
		x, e, ok := l.pop()
		if !ok {
			return
		}
		if e.Comm == "" && e.Pid != 0 {
			e.Comm = names.comm(e.Pid)
			l.mu.Lock()
			x.event.Comm = e.Comm // for the line with the count, when the process may be gone
			l.mu.Unlock()
		}
		l.deliver(e)
	}
}

// deliver sends the event to all who want it. Nobody but the file needs to be
// told again and again that it can't be written.
func (l *Log) deliver(e Event) {
	if e.Event != Dropped {
		l.publish(e)
	}
	err := l.writeLine(e)
	l.steps.Add(1)
	if e.Event == Dropped && err == nil {
		l.publish(e)
	}
	l.note(err)
}

// pop takes the first entry of the queue, and the event as it is to be written.
func (l *Log) pop() (x *entry, e Event, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = len(l.queue) > 0
	if !l.busy {
		l.queue = nil // gives back what a storm has taken
		return nil, Event{}, false
	}
	x = l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	x.queued = false
	x.written = x.count
	e = x.event
	e.Count = x.count
	if x.count > 1 {
		first, last := x.event.Time, x.last
		e.First, e.Last = &first, &last
	}
	return x, e, true
}

// writeLine appends the event to all files. What the first of them does not
// take counts as dropped.
func (l *Log) writeLine(e Event) error {
	line, err := Encode(e)
	if err != nil {
		return err
	}
	for i, f := range l.files {
		failed := f.append(line)
		if failed != nil && i == 0 {
			l.mu.Lock()
			l.drop(e, e.Time)
			l.mu.Unlock()
		}
		err = errors.Join(err, failed)
	}
	return err
}

func (l *Log) note(err error) {
	l.mu.Lock()
	l.health = err
	l.mu.Unlock()
}

func closeFiles(files []*lineFile) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.close())
	}
	return err
}

// processes is the names of those that are met now: in a storm the same few
// processes meet all of it.
type processes struct {
	since time.Time
	names map[uint32]string
}

// comm is the name of a process, at most a second old; "" if it was gone.
func (p *processes) comm(pid uint32) string {
	if now := time.Now(); now.Sub(p.since) > time.Second {
		p.since, p.names = now, map[uint32]string{}
	}
	name, known := p.names[pid]
	if !known {
		name = comm(pid)
		p.names[pid] = name
	}
	return name
}

func comm(pid uint32) string {
	name, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(name, []byte("\n")))
}

// Encode is the event as one line of JSON, with its newline.
func Encode(e Event) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err // a time outside the years 0 to 9999
	}
	return b.Bytes(), nil
}
