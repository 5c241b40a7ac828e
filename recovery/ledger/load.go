package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// readIndex reads which files there are and which intents are closed.
func (l *Ledger) readIndex() error {
	return l.store.view(func(tx *bbolt.Tx) error {
		c, err := l.store.counts(tx)
		if err != nil {
			return err
		}
		l.nextID = c.nextID
		sum := uint64(0)
		for _, part := range []struct {
			bucket []byte
			read   func(key, value []byte) error
		}{{bucketFiles(), l.readFile}, {bucketClosed(), l.readClosed}} {
			err := tx.Bucket(part.bucket).ForEach(func(key, value []byte) error {
				sum += hash(key, value)
				return part.read(key, value)
			})
			if err != nil {
				return err
			}
		}
		switch {
		case uint64(len(l.files)) != c.files:
			return l.store.damaged(fmt.Errorf("it has %d files where %d should be", len(l.files), c.files))
		case uint64(len(l.closed)) != c.closed:
			return l.store.damaged(fmt.Errorf("it has %d closed intents where %d should be", len(l.closed), c.closed))
		case l.store.version >= 2 && sum != c.sum:
			return l.store.damaged(errors.New("records of files or intents are of another time than the rest"))
		case l.store.version >= 2 && c.tx != uint64(tx.ID()):
			return l.store.damaged(fmt.Errorf("its records are of transaction %d where %d was the last", c.tx, tx.ID()))
		}
		return nil
	})
}

func (l *Ledger) readFile(key, value []byte) error {
	r, err := decodeFile(l.store.version, key, value)
	if err != nil {
		return l.store.damaged(fmt.Errorf("the record of file %q: %w", key, err))
	}
	l.files[string(key)] = &file{id: r.id, key: string(key), path: r.path, live: r.live, past: r.past, recorded: true}
	l.records++
	l.rows += int64(r.live)
	l.live.Store(l.rows)
	return nil
}

func (l *Ledger) readClosed(key, value []byte) error {
	f := unseal(key, value)
	if len(key) != 8 {
		f.fail(errors.New("the key has not 8 bytes"))
	}
	if err := f.end(); err != nil {
		return l.store.damaged(fmt.Errorf("the record of a closed intent: %w", err))
	}
	l.closed[binary.BigEndian.Uint64(key)] = struct{}{}
	return nil
}

// loadAll brings the rows of all files of c into memory. A file that is not
// known yet has none.
func (l *Ledger) loadAll(c Change) error {
	for _, x := range c.Lost {
		if err := l.Load(x.File.Key()); err != nil {
			return err
		}
	}
	for _, m := range c.Moves {
		if err := l.Load(m.File.Key()); err != nil {
			return err
		}
	}
	return nil
}

// loading is a reading of a file's rows, by the first who needs them, for all.
type loading struct {
	done chan struct{} // closed when they are in memory, or err says why not
	err  error
}

// Load brings the live rows of a file into memory, where they stay. Until then they
// don't change: who wants to change them loads them first.
func (l *Ledger) Load(key string) error {
	l.mu.RLock()
	f := l.files[key]
	loaded := f == nil || f.loaded
	l.mu.RUnlock()
	if loaded {
		return nil
	}
	l.mu.Lock()
	mine, all := &loading{done: make(chan struct{})}, f.load
	switch {
	case f.loaded:
		l.mu.Unlock()
		return nil
	case l.shut:
		l.mu.Unlock()
		return ErrClosed
	case all == nil:
		f.load = mine
	}
	l.mu.Unlock()
	if all != nil {
		<-all.done
		return all.err
	}
	var rows rowMap
	mine.err = l.readRows(f.key, func(off int64, w row) { rows.set(off, w) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.load = nil; mine.err == nil {
		f.rows, f.loaded = rows, true
	}
	close(mine.done)
	return mine.err
}

// readRows reads the live rows of a file from disk, in order, and checks them.
func (l *Ledger) readRows(file string, do func(off int64, w row)) error {
	return l.store.view(func(tx *bbolt.Tx) error {
		r, err := l.store.recordOf(tx, file)
		if err != nil {
			return err
		}
		end := int64(0)
		return l.store.rows(tx, bucketRows(), file, r.live, r.liveSum, func(key []byte, off int64, w row, k kind) error {
			switch {
			case len(key) != len(rowKey(file, 0)):
				return errors.New("the key is too long")
			case !k.state.Live():
				return fmt.Errorf("%q is no live state", k.state)
			case off < end:
				return fmt.Errorf("%v overlaps the row before", ranges.Range{Off: off, Len: w.length})
			}
			end = off + w.length
			w.what = l.kinds.share(k)
			do(off, w)
			return nil
		})
	})
}

// readHistory reads the history of a file from disk, in order. What waits is not in it.
func (l *Ledger) readHistory(file string, do func(off int64, w row)) error {
	return l.store.view(func(tx *bbolt.Tx) error {
		r, err := l.store.recordOf(tx, file)
		if err != nil {
			return err
		}
		return l.store.rows(tx, bucketHistory(), file, r.past, r.pastSum, func(_ []byte, off int64, w row, k kind) error {
			w.what = l.kinds.share(k)
			do(off, w)
			return nil
		})
	})
}

// recordOf is the record of a file; of one that is not on disk yet, empty.
func (s *store) recordOf(tx *bbolt.Tx, file string) (fileRecord, error) {
	key := []byte(file)
	value := tx.Bucket(bucketFiles()).Get(key)
	if value == nil {
		return fileRecord{}, nil
	}
	r, err := decodeFile(s.version, key, value)
	if err != nil {
		return r, s.damaged(fmt.Errorf("the record of file %q: %w", key, err))
	}
	return r, nil
}

// rows walks the rows of a file in a bucket and checks that they are as many as
// there should be, and those.
func (s *store) rows(tx *bbolt.Tx, bucket []byte, file string, n int, sum uint64, do func(key []byte, off int64, w row, k kind) error) error {
	prefix := rowPrefix(file)
	seen, seenSum := 0, uint64(0)
	err := under(tx.Bucket(bucket), prefix, func(key, value []byte) error {
		off, w, k, err := decodeRow(key, len(prefix), value)
		if err == nil {
			err = do(key, off, w, k)
		}
		if err != nil {
			return s.damaged(fmt.Errorf("a row of file %q in %s: %w", file, bucket, err))
		}
		seen, seenSum = seen+1, seenSum+hash(key, value)
		return nil
	})
	switch {
	case err != nil:
		return err
	case seen != n:
		return s.damaged(fmt.Errorf("file %q has %d %s where %d should be", file, seen, bucket, n))
	case s.version >= 2 && seenSum != sum:
		return s.damaged(fmt.Errorf("%s of file %q are of another time than the rest", bucket, file))
	}
	return nil
}
