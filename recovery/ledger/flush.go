package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
)

const (
	flushDelay = 500 * time.Millisecond // so that a storm is few transactions; within P5's second
	retryDelay = 10 * time.Second       // at most, between tries on a disk that refuses
)

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
	return l.settle(number, number)
}

// FlushFile returns nil when all that was recorded of the file with that key
// before is durable, whatever waits of others. If it is already, the disk is not
// asked.
func (l *Ledger) FlushFile(key string) error {
	l.mu.Lock()
	f := l.files[key]
	if f == nil || f.newest <= l.durable {
		l.mu.Unlock()
		return nil
	}
	l.applied++ // as in Flush
	number, asked := f.newest, l.applied
	l.mu.Unlock()
	return l.settle(number, asked)
}

// Health is nil, or why the newest rows are not on disk.
func (l *Ledger) Health() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.health
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
// one, together with all others who came: asked is the newest change when the
// caller came, and a refusal of one as new is the caller's, too.
func (l *Ledger) settle(number, asked uint64) error {
	l.disk.Lock()
	defer l.disk.Unlock()
	if l.durable < number && l.tried >= asked {
		return l.triedErr
	}
	for l.durable < number {
		b, upto := l.begin()
		l.Points.Hit(failpoint.LedgerWriting)
		err := l.write(b)
		l.Points.Hit(failpoint.LedgerWritten)
		l.end(b.number, err)
		if err != nil {
			l.tried, l.triedErr = upto, err
			return err
		}
	}
	return nil
}

// poke tells the flusher that something waits. l.mu is held.
func (l *Ledger) poke() {
	signal(l.wake)
	if len(l.sealed) > 0 && l.health == nil {
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
