package ledger

import (
	"slices"
	"time"
)

const (
	// A batch is sealed when it has about this many rows, a file counting as
	// some of them for its record and the pages of the store that it takes.
	batchRows   = 1 << 14
	rowsPerFile = 4
	// paceAt is how many rows may wait before Record waits for the disk, and
	// pace how old a transaction may be for that: of a slow disk the readers of
	// lost bytes feel no more.
	paceAt = 2 * batchRows
	pace   = time.Second
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

// batchSize is what of the batches that are sealed counts as waiting.
type batchSize struct{ rows, history, intents int }

// Waiting is how many rows are not on disk yet.
func (l *Ledger) Waiting() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.waiting()
}

func (l *Ledger) waiting() int {
	return l.dirtyRows + len(l.history) + len(l.closing) + len(l.forgotten) + l.inSealed.rows + l.inSealed.intents
}

// makeRoom makes a caller wait for a disk that is behind. One that refuses is
// not asked again here: change says ErrFull.
func (l *Ledger) makeRoom() {
	l.mu.RLock()
	for since := time.Now(); l.waiting() >= paceAt && l.health == nil && !l.shut; {
		if !l.writing.IsZero() {
			since = l.writing
		}
		turn, full := l.turn, l.waiting() >= l.limit
		l.mu.RUnlock()
		switch left := pace - time.Since(since); {
		case full:
			_ = l.Flush() // its error is in health, where change looks
		case left <= 0:
			return
		default:
			select {
			case <-turn:
			case <-time.After(left):
			}
		}
		l.mu.RLock()
	}
	l.mu.RUnlock()
}

// sealIfFull ends a batch that is large enough. l.mu is held, between changes.
func (l *Ledger) sealIfFull() {
	if l.dirtyRows+rowsPerFile*len(l.dirty)+len(l.history)-l.inSealed.history >= batchRows {
		l.seal()
	}
}

// seal makes a batch of everything that is in none yet. Rows are copied out of
// the dirty sets; queries find history where it is until the batch is done with.
// l.mu is held, between changes.
func (l *Ledger) seal() {
	b := batch{
		number:    l.applied,
		rows:      l.dirtyRows,
		history:   l.history[l.inSealed.history:len(l.history):len(l.history)],
		closing:   l.closing,
		forgotten: l.forgotten,
	}
	for f := range l.dirty {
		if f.recorded {
			l.records--
		}
		if f.recorded = !f.isEmpty(); f.recorded {
			l.records++
		}
		w := fileWrite{file: f, path: f.path, live: f.live, past: f.past, rows: make([]rowWrite, 0, len(f.dirty))}
		for off := range f.dirty {
			row, _ := f.rows.get(off) // none: the zero row, without a kind
			w.rows = append(w.rows, rowWrite{off, row})
		}
		f.dirty = nil
		if len(w.rows) >= len(f.rows.chunks) { // or it would cost more than the batch
			f.rows.trim()
		}
		b.files = append(b.files, w)
	}
	b.counts = counts{nextID: l.nextID, files: l.records, closed: uint64(len(l.closed))}
	l.dirty = map[*file]struct{}{} // gives back what a storm has taken
	l.dirtyRows, l.closing, l.forgotten = 0, nil, nil
	l.sealed = append(l.sealed, b)
	l.inSealed.add(b, +1)
}

func (s *batchSize) add(b batch, sign int) {
	s.rows += sign * b.rows
	s.history += sign * len(b.history)
	s.intents += sign * (len(b.closing) + len(b.forgotten))
}

// begin is the batch to write next, and the number of the newest change, which
// waits for it. The batch stays the first until it is on disk.
func (l *Ledger) begin() (b batch, newest uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sealed) == 0 {
		l.seal()
	}
	l.writing = time.Now()
	return l.sealed[0], l.applied
}

// end says what became of the first batch, of that number: it is done with, or to
// be tried again.
func (l *Ledger) end(number uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.health, l.writing = err, time.Time{}
	close(l.turn)
	l.turn = make(chan struct{})
	if err != nil {
		return
	}
	l.durable = number
	done := l.sealed[0]
	l.sealed[0] = batch{}
	l.sealed = l.sealed[1:]
	l.inSealed.add(done, -1)
	l.history = slices.Clone(l.history[len(done.history):])
	for _, w := range done.files {
		if w.file.isEmpty() && w.file.newest <= l.durable { // else a later batch has it
			delete(l.files, w.file.key)
		}
	}
}
