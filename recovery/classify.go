package recovery

import (
	"errors"
	"sync"
	"time"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// classify decides for pages that failed alone whether that is poison. Pages
// that turn out readable after all are dropped from the list. An error is an
// outage: nothing may be recorded of any of them.
//
// A failure is poison at once when somebody's list says so, the rest of the
// page can be had, and the filesystem is not down: then it refuses good pages just so.
// All else is doubtful, since an outage may have begun at any
// moment: see isolate.
func (f *File) classify(d *damage, suspects []*page) ([]*page, error) {
	var bad, doubtful []*page
	for _, p := range suspects {
		p.verdict = f.below.Corroborate(p.want)
		if p.verdict == media.Listed {
			p.salvage(f.below)
		}
		if p.part {
			bad = append(bad, p)
		} else {
			doubtful = append(doubtful, p)
		}
	}
	if len(bad) > 0 {
		if err := f.alive(bad[0].want); err != nil {
			return nil, err
		}
	}
	if len(doubtful) == 0 {
		return bad, nil
	}
	isolated, err := f.isolate(d, doubtful)
	if err != nil {
		return nil, err
	}
	return append(bad, isolated...), nil
}

// isolate keeps the pages that fail again between two control reads from the
// media that work. Where there is nothing to read for control, a page must vouch
// for itself: it is listed, or part of it can be read.
func (f *File) isolate(d *damage, doubtful []*page) ([]*page, error) {
	avoid := d.badPages()
	for _, p := range doubtful {
		avoid.Add(p.whole())
	}
	before := f.below.Control(avoid)
	if before != nil && !errors.Is(before, media.ErrNoControl) {
		return nil, f.outage(doubtful[0].want, doubtful[0].err)
	}
	var isolated []*page
	uncorroborated := 0
	for _, p := range doubtful {
		if p.verdict != media.Listed {
			err := p.retry(f.below)
			if err == nil {
				continue // it was passing: no poison here
			}
			p.verdict = f.below.Corroborate(p.want) // the list may be a moment late
			if !mayBePoison(err) || p.verdict == media.Clear && !isMachineCheck(err) {
				return nil, f.outage(p.want, err) // no media error, or not on a complete list
			}
			p.salvage(f.below)
			if p.verdict != media.Listed {
				uncorroborated++
			}
		}
		isolated = append(isolated, p)
	}
	if len(isolated) == 0 {
		return nil, nil
	}
	after := f.below.Control(avoid)
	for _, p := range isolated {
		if !p.isolatedBy(before) || !p.isolatedBy(after) {
			return nil, f.outage(p.want, p.err)
		}
	}
	if !f.engine.breaker.allow(time.Now(), uncorroborated) {
		return nil, f.outage(isolated[0].want, isolated[0].err)
	}
	return isolated, nil
}

// isolatedBy reports whether a control read that ended so shows that the page
// alone is at fault.
func (p *page) isolatedBy(control error) bool {
	return control == nil || errors.Is(control, media.ErrNoControl) && (p.verdict == media.Listed || p.part)
}

// outage reports a failure that is not poison, and makes it an error that
// carries the backing's own errno.
func (f *File) outage(r ranges.Range, err error) error {
	f.engine.tellOutage(f.event(event.Outage, r, Caller{}), err)
	return &OutageError{Range: r, Err: err}
}

// alive fails where the filesystem itself is down, whatever is bad besides.
func (f *File) alive(r ranges.Range) error {
	if err := media.Alive(f.below.Fd()); isDown(err) {
		return f.outage(r, err)
	}
	return nil
}

// tellOutage emits the event; all but the first of an outage are only counted.
func (e *Engine) tellOutage(ev event.Event, err error) {
	e.counters.outageErrors.Add(1)
	if e.outage.begins(time.Now()) {
		e.Events.OutageOver()
	}
	ev.Error, ev.Action = err.Error(), "passed-through"
	ev.Next = "check the device and the kernel's log; nothing was recorded as lost"
	e.Events.Emit(ev)
}

// trouble passes on an errno that can't be poison, as an outage if it says that
// the device is gone.
func (f *File) trouble(r ranges.Range, err error) error {
	if isGone(err) {
		return f.outage(r, err)
	}
	return err
}

// stat asks the filesystem afresh; that it can't answer is an outage.
func (f *File) stat() (media.Stat, error) {
	st, err := f.below.Stat()
	st.Size = f.ino.Size(st.Size)
	if err != nil {
		return st, f.outage(ranges.Range{}, err)
	}
	return st, nil
}

// outage tells one outage from the next: failures less than a minute apart
// belong together.
type outage struct {
	mu   sync.Mutex // guards last
	last time.Time
}

func (o *outage) begins(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	begins := now.Sub(o.last) > time.Minute
	o.last = now
	return begins
}

func (o *outage) isOn(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return now.Sub(o.last) <= time.Minute
}

// DefaultBreaker is Config.Breaker unless it is given.
const DefaultBreaker = 1024

// breakerWindow is the time for which the breaker counts, and for which it has
// to be quiet before it closes again.
const breakerWindow = 10 * time.Second

// breaker stops a failing device from being taken for a great many bad pages.
type breaker struct {
	limit int // pages within the window

	mu      sync.Mutex // guards all below
	start   time.Time  // of the window
	pages   int
	tripped time.Time // the last failure while open; zero: closed
}

// allow reports whether n more uncorroborated pages may be given up now.
func (b *breaker) allow(now time.Time, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.tripped.IsZero() {
		if now.Sub(b.tripped) < breakerWindow {
			b.tripped = now
			return false
		}
		b.tripped, b.pages = time.Time{}, 0
	}
	if now.Sub(b.start) >= breakerWindow {
		b.start, b.pages = now, 0
	}
	if b.pages+n > b.limit {
		b.tripped = now
		return false
	}
	b.pages += n
	return true
}

func (b *breaker) open(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.tripped.IsZero() && now.Sub(b.tripped) < breakerWindow
}
