package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

const (
	flushDelay = 500 * time.Millisecond // so that a storm is few transactions; within P5's second
	retryDelay = 10 * time.Second       // at most, between tries on a disk that refuses
	hurryAt    = 1 << 15                // rows that don't wait for the delay
)

// batch is what one transaction writes: a snapshot of all that waits.
type batch struct {
	number    uint64 // of the newest change in it
	counts    counts
	files     []fileWrite
	rows      int
	history   []past
	closing   []uint64
	forgotten []uint64
}

type fileWrite struct {
	file *file
	path string
	live int
	past int
	rows []rowWrite // in order
}

// rowWrite is a live row, or that there is none if row.what is nil.
type rowWrite struct {
	off int64
	row row
}

// Flush returns nil when everything recorded before is durable.
func (l *Ledger) Flush() error {
	l.mu.Lock()
	if l.readOnly {
		l.mu.Unlock()
		return nil
	}
	l.applied++ // so that the disk is tried even if it refused all this before
	number := l.applied
	l.mu.Unlock()
	return l.settle(number)
}

// Health is nil, or why the newest rows are not on disk.
func (l *Ledger) Health() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.health
}

// Waiting is how many rows are not on disk yet.
func (l *Ledger) Waiting() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.waiting()
}

func (l *Ledger) waiting() int {
	return l.dirtyRows + l.flying + len(l.history) + len(l.closing) + len(l.forgotten)
}

// Close writes what waits and gives up the store. The error says how many rows
// are lost with it.
func (l *Ledger) Close() error {
	l.mu.Lock()
	if l.shut {
		l.mu.Unlock()
		return nil
	}
	l.shut = true
	l.mu.Unlock()
	if l.readOnly {
		return l.store.close()
	}
	close(l.stop)
	<-l.stopped
	err := l.Flush()
	if err != nil {
		err = fmt.Errorf("%d rows could not be recorded: %w", l.Waiting(), err)
	}
	return errors.Join(err, l.store.close())
}

// settle returns nil when the change of that number and all before are
// durable. Who comes while a transaction is under way is served by the next
// one, together with all others who came.
func (l *Ledger) settle(number uint64) error {
	l.disk.Lock()
	defer l.disk.Unlock()
	if l.durable >= number {
		return nil
	}
	if l.tried >= number {
		return l.triedErr
	}
	b := l.take()
	err := l.write(b)
	l.give(b, err)
	l.tried, l.triedErr = b.number, err
	if err == nil {
		l.durable = b.number
	}
	return err
}

// poke tells the flusher that something waits. l.mu is held.
func (l *Ledger) poke() {
	signal(l.wake)
	if l.dirtyRows+len(l.history) >= hurryAt && l.health == nil {
		signal(l.hurry)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // told already
	}
}

// flusher writes what waits, a little later. Close stops it.
func (l *Ledger) flusher() {
	defer close(l.stopped)
	delay := flushDelay
	for {
		select {
		case <-l.stop:
			return
		case <-l.wake:
		}
		select {
		case <-l.stop:
			return
		case <-l.hurry:
		case <-time.After(delay):
		}
		if l.flushIfNeeded() == nil {
			delay = flushDelay
			continue
		}
		delay = min(2*delay, retryDelay)
		signal(l.wake)
	}
}

// flushIfNeeded spares a transaction where a Commit has taken everything.
func (l *Ledger) flushIfNeeded() error {
	l.mu.RLock()
	idle := l.waiting() == 0 && len(l.dirty) == 0
	l.mu.RUnlock()
	if idle {
		return nil
	}
	return l.Flush()
}

// take makes a batch of everything that waits. Rows are taken out of the dirty
// sets; the lists stay where they are, so that queries see them, until give.
func (l *Ledger) take() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := batch{
		number:    l.applied,
		counts:    counts{nextID: l.nextID, files: uint64(len(l.files)), closed: uint64(len(l.closed))},
		rows:      l.dirtyRows,
		history:   l.history[:len(l.history):len(l.history)],
		closing:   slices.Clone(l.closing),
		forgotten: slices.Clone(l.forgotten),
	}
	for f := range l.dirty {
		w := fileWrite{file: f, path: f.path, live: f.live, past: f.past, rows: make([]rowWrite, 0, len(f.dirty))}
		for off := range f.dirty {
			row, _ := f.rows.Get(off) // none: the zero row, without a kind
			w.rows = append(w.rows, rowWrite{off, row})
		}
		f.dirty = nil
		b.files = append(b.files, w)
	}
	clear(l.dirty)
	l.flying, l.dirtyRows = l.dirtyRows, 0
	return b
}

// give says what became of a batch: its lists are done with, or its rows are
// dirty again.
func (l *Ledger) give(b batch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying = 0
	l.health = err
	if err == nil {
		l.history = slices.Clone(l.history[len(b.history):])
		l.closing = slices.Clone(l.closing[len(b.closing):])
		l.forgotten = slices.Clone(l.forgotten[len(b.forgotten):])
		return
	}
	for _, w := range b.files {
		l.touch(w.file)
		for _, r := range w.rows {
			l.touchRow(w.file, r.off)
		}
	}
}

// write is the one transaction of a batch.
func (l *Ledger) write(b batch) error {
	if len(b.files) == 0 && len(b.history) == 0 && len(b.closing) == 0 && len(b.forgotten) == 0 {
		return nil
	}
	slices.SortFunc(b.files, func(x, y fileWrite) int { return strings.Compare(x.file.key, y.file.key) })
	return l.store.update(func(tx *bbolt.Tx) error {
		for _, w := range b.files {
			if err := w.put(tx); err != nil {
				return err
			}
		}
		return errors.Join(
			putHistory(tx.Bucket(bucketHistory()), b.history),
			putClosed(tx.Bucket(bucketClosed()), b.closing, b.forgotten),
			putCounts(tx.Bucket(bucketMeta()), b.counts))
	})
}

func (w fileWrite) put(tx *bbolt.Tx) error {
	var r record
	r.id(w.file.id)
	r.string(w.path)
	r.uint(uint64(w.live))
	r.uint(uint64(w.past))
	key := []byte(w.file.key)
	if err := tx.Bucket(bucketFiles()).Put(key, r.seal(key)); err != nil {
		return err
	}
	slices.SortFunc(w.rows, func(x, y rowWrite) int { return int(min(1, max(-1, x.off-y.off))) })
	rows := tx.Bucket(bucketRows())
	for _, r := range w.rows {
		key := rowKey(w.file.key, r.off)
		var err error
		if r.row.what == nil {
			err = rows.Delete(key)
		} else {
			err = rows.Put(key, encodeRow(key, r.row))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func putHistory(b *bbolt.Bucket, rows []past) error {
	for _, p := range rows {
		key := historyKey(p.file.key, p.Off, p.id)
		if err := b.Put(key, encodeRow(key, p.row)); err != nil {
			return err
		}
	}
	return nil
}

func putClosed(b *bbolt.Bucket, closing, forgotten []uint64) error {
	for _, id := range closing {
		var r record
		key := intentKey(id)
		if err := b.Put(key, r.seal(key)); err != nil {
			return err
		}
	}
	for _, id := range forgotten {
		if err := b.Delete(intentKey(id)); err != nil {
			return err
		}
	}
	return nil
}
