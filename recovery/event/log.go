package event

import (
	"container/list"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
)

const (
	quietFor      = 10 * time.Second // without a repeat, until the count is written
	countFor      = time.Minute      // at most
	sweepEvery    = time.Second
	maxOpen       = 1 << 13         // events that wait, or whose repeats are counted; 8 MiB
	closePatience = 3 * time.Second // without a line being written
)

// Options says where events go.
type Options struct {
	Path  string           // the JSON Lines of the state directory, rotated: 5 files of 64 MiB
	Extra string           // a file that gets the same lines; "" for none
	Human io.Writer        // gets a line of plain words for each event; nil for none
	Now   func() time.Time // the clock; nil for the real one
}

// Log takes events and writes them. All methods may be called concurrently.
type Log struct {
	now   func() time.Time
	files []*lineFile // used by the writer goroutine only

	mu      sync.Mutex // guards the rest down to subs; never held over I/O
	entropy *ulid.MonotonicEntropy
	lastMs  uint64
	open    map[foldKey]*entry
	byAge   list.List // of the *entry in open, oldest first
	outage  bool      // one was told and is not over
	queue   []*entry  // to be written, in order
	busy    bool      // one taken from the queue is being written
	dropped entry     // stands for the events that found no room
	counts  map[Kind]int64
	health  error
	closed  bool
	room    int // maxOpen; replaced by tests
	subs    map[*subscriber]struct{}

	steps atomic.Int64 // lines written, by anyone

	wake, quit, done chan struct{} // the writer goroutine's
	human            chan struct{} // closed when the printer of human text is done
}

// foldKey is what repeats of an event have in common.
type foldKey struct {
	kind           Kind
	dev, path      string // path only where there is no inode
	ino            uint64
	offset, length int64
	action, error  string
}

// entry is an event and its repeats until now.
type entry struct {
	key     foldKey
	place   *list.Element // in byAge
	event   Event
	count   int64
	last    time.Time
	queued  bool
	written int64 // the count when it was written last; 0: never
}

// New opens the files and starts the log. Close stops it.
func New(o Options) (*Log, error) {
	var files []*lineFile
	for _, f := range []struct {
		path string
		open func(string) (*lineFile, error)
	}{{o.Path, openRotated}, {o.Extra, openAppend}} {
		if f.path == "" {
			continue
		}
		file, err := f.open(f.path)
		if err != nil {
			return nil, errors.Join(err, closeFiles(files))
		}
		files = append(files, file)
	}
	return start(files, o.Human, o.Now), nil
}

func start(files []*lineFile, human io.Writer, now func() time.Time) *Log {
	if now == nil {
		now = time.Now
	}
	l := &Log{
		now:     now,
		files:   files,
		entropy: ulid.Monotonic(rand.Reader, 0),
		open:    map[foldKey]*entry{},
		counts:  map[Kind]int64{},
		room:    maxOpen,
		subs:    map[*subscriber]struct{}{},
		wake:    make(chan struct{}, 1),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
		human:   make(chan struct{}),
	}
	l.startPrinter(human)
	go l.write() // until Close
	return l
}

// Emit takes an event. It never blocks and never fails. It fills in what the
// caller leaves empty: version, id, time, count, next, and comm from the pid.
func (l *Log) Emit(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now().UTC()
	e.Count = max(e.Count, 1)
	l.counts[e.Event] += e.Count
	if l.closed || l.isRepeat(e, now) {
		return
	}
	if len(l.open) >= l.room && !l.foldOldest() {
		l.drop(e, now)
		return
	}
	l.complete(&e, now)
	x := &entry{key: keyOf(e), event: e, count: e.Count, last: e.Time}
	if e.Event == Outage {
		l.outage = true
	}
	l.open[x.key] = x
	x.place = l.byAge.PushBack(x)
	l.enqueue(x)
}

// foldOldest makes room for an event where the counting of the oldest can end,
// which is written by then. l.mu is held.
func (l *Log) foldOldest() bool {
	x := l.byAge.Front().Value.(*entry)
	if x.queued {
		return false
	}
	l.fold(x)
	return len(l.queue) < l.room
}

// fold ends the counting of an event's repeats. l.mu is held.
func (l *Log) fold(x *entry) {
	delete(l.open, x.key)
	l.byAge.Remove(x.place)
	if x.count > x.written && x.key.kind != Outage {
		l.enqueue(x)
	}
}

// isRepeat counts e where it repeats an event that is being counted. Of an
// outage nothing but the first event is told, whatever file it hits and
// whatever errno it shows.
func (l *Log) isRepeat(e Event, now time.Time) bool {
	if e.Event == Outage {
		return l.outage
	}
	x := l.open[keyOf(e)]
	if x == nil {
		return false
	}
	x.count += e.Count
	x.last = now
	return true
}

func keyOf(e Event) foldKey {
	k := foldKey{kind: e.Event, dev: e.Dev, ino: e.Ino, offset: e.Offset, length: e.Length, action: e.Action, error: e.Error}
	if e.Ino == 0 {
		k.path = e.Path + string(e.PathB64)
	}
	return k
}

// complete fills in what the caller left empty.
func (l *Log) complete(e *Event, now time.Time) {
	e.Version = Version
	if e.Time.IsZero() {
		e.Time = now
	}
	e.Time = e.Time.UTC().Round(0) // without the monotonic clock
	e.ID = l.newID(now)
	if e.Next == "" {
		e.Next = next(*e)
	}
	if !utf8.ValidString(e.Path) {
		e.Path, e.PathB64 = "", []byte(e.Path)
	}
}

// newID is a ULID greater than all before, also when the clock goes back.
func (l *Log) newID(now time.Time) string {
	l.lastMs = max(l.lastMs, ulid.Timestamp(now))
	id, err := ulid.New(l.lastMs, l.entropy)
	if err != nil { // 2^80 ids in a millisecond, or no randomness: the next millisecond has both
		l.lastMs++
		id, _ = ulid.New(l.lastMs, l.entropy) // at worst all zero: an event without a good id beats none
	}
	return id.String()
}

// OutageOver says that I/O works again: the next failure is a new outage.
func (l *Log) OutageOver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outage = false
}

// Counts is how many events of each kind there were since New, with those that
// were folded or dropped.
func (l *Log) Counts() map[Kind]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts)
}

// Health is nil, or why the newest event is not in a file.
func (l *Log) Health() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.health
}

// Close writes what waits, counts of repeats too, and closes the files. Where
// a writer hangs it gives up after a few seconds, with an error.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.quit)
	if !l.ended(l.done) {
		return errors.New("event log: writing the files hangs; the ledger has what they would say")
	}
	if !l.ended(l.human) {
		return errors.New("event log: printing events hangs; the files have them")
	}
	return l.Health()
}

// ended waits for a goroutine to end, as long as lines are being written.
func (l *Log) ended(done chan struct{}) bool {
	for {
		steps := l.steps.Load()
		select {
		case <-done:
			return true
		case <-time.After(closePatience):
			if l.steps.Load() == steps {
				return false
			}
		}
	}
}

// enqueue hands an entry to the writer goroutine. l.mu is held.
func (l *Log) enqueue(x *entry) {
	x.queued = true
	l.queue = append(l.queue, x)
	select {
	case l.wake <- struct{}{}:
	default: // told already
	}
}

// drop counts events that can't be written. l.mu is held.
func (l *Log) drop(e Event, now time.Time) {
	if l.dropped.count == 0 {
		l.dropped.event = Event{Event: Dropped, Time: now}
	}
	l.dropped.count += e.Count
	l.dropped.last = now
	if e.Event != Dropped { // or they are counted already
		l.counts[Dropped] += e.Count
	}
}
