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
		c, err := getCounts(tx)
		if err != nil {
			return l.store.damaged(fmt.Errorf("the record of its counts: %w", err))
		}
		l.nextID = c.nextID
		if err := tx.Bucket(bucketFiles()).ForEach(l.readFile); err != nil {
			return err
		}
		if uint64(len(l.files)) != c.files {
			return l.store.damaged(fmt.Errorf("it has %d files where %d should be", len(l.files), c.files))
		}
		if err := tx.Bucket(bucketClosed()).ForEach(l.readClosed); err != nil {
			return err
		}
		if uint64(len(l.closed)) != c.closed {
			return l.store.damaged(fmt.Errorf("it has %d closed intents where %d should be", len(l.closed), c.closed))
		}
		return nil
	})
}

func (l *Ledger) readFile(key, value []byte) error {
	f := unseal(key, value)
	id, path, live, past := f.id(), f.string(), f.uint(), f.uint()
	if id.Key() != string(key) {
		f.fail(errors.New("key and file differ"))
	}
	if err := f.end(); err != nil {
		return l.store.damaged(fmt.Errorf("the record of file %q: %w", key, err))
	}
	l.files[string(key)] = &file{id: id, key: string(key), path: path, live: int(live), past: int(past)}
	l.live.Add(int64(live))
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

// loadAll brings the rows of all files of c into memory. l.mu is held.
func (l *Ledger) loadAll(c Change) error {
	for _, x := range c.Lost {
		if err := l.load(l.files[x.File.Key()]); err != nil {
			return err
		}
	}
	for _, m := range c.Moves {
		if err := l.load(l.files[m.File.Key()]); err != nil {
			return err
		}
	}
	return nil
}

// load brings the rows of f into memory. l.mu is held for writing.
func (l *Ledger) load(f *file) error {
	if f == nil || f.loaded {
		return nil
	}
	err := l.readRows(f, func(off int64, w row, k kind) {
		w.what = l.kind(k)
		f.rows.Load(off, w)
	})
	if err != nil {
		f.rows.Clear()
		return err
	}
	f.loaded = true
	return nil
}

// readRows reads the live rows of f from disk, in order, and checks them.
func (l *Ledger) readRows(f *file, do func(off int64, w row, k kind)) error {
	return l.store.view(func(tx *bbolt.Tx) error {
		n, end := 0, int64(0)
		prefix := rowPrefix(f.key)
		err := under(tx.Bucket(bucketRows()), prefix, func(key, value []byte) error {
			off, w, k, err := decodeRow(key, len(prefix), value)
			switch {
			case err != nil:
			case len(key) != len(prefix)+8:
				err = errors.New("the key is too long")
			case !k.state.Live():
				err = fmt.Errorf("%q is no live state", k.state)
			case off < end:
				err = fmt.Errorf("%v overlaps the row before", ranges.Range{Off: off, Len: w.length})
			}
			if err != nil {
				return l.store.damaged(fmt.Errorf("a row of %v, %q: %w", f.id, f.path, err))
			}
			do(off, w, k)
			n, end = n+1, off+w.length
			return nil
		})
		if err == nil && n != f.live {
			err = l.store.damaged(fmt.Errorf("%v, %q, has %d rows where %d should be", f.id, f.path, n, f.live))
		}
		return err
	})
}

// readHistory reads the history of f from disk, in order. Of the rows that it
// has, as many as wait may be missing.
func (l *Ledger) readHistory(f *file, waiting int, do func(off int64, w row, k kind)) error {
	return l.store.view(func(tx *bbolt.Tx) error {
		n, prefix := 0, rowPrefix(f.key)
		err := under(tx.Bucket(bucketHistory()), prefix, func(key, value []byte) error {
			off, w, k, err := decodeRow(key, len(prefix), value)
			if err != nil {
				return l.store.damaged(fmt.Errorf("a history row of %v, %q: %w", f.id, f.path, err))
			}
			do(off, w, k)
			n++
			return nil
		})
		if err == nil && (n > f.past || n < f.past-waiting) {
			err = l.store.damaged(fmt.Errorf("%v, %q, has %d rows of history where %d should be", f.id, f.path, n, f.past))
		}
		return err
	})
}
