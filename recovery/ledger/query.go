package ledger

import (
	"cmp"
	"iter"
	"slices"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Any reports whether there is any live row. It is cheap and takes no lock.
func (l *Ledger) Any() bool { return l.live.Load() > 0 }

// Has reports whether the file with that key has a live row. It never asks the
// disk.
func (l *Ledger) Has(key string) bool {
	if !l.Any() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[key]
	return f != nil && f.live > 0
}

// Live is the bytes of a file that are lost and those that are reinitialized.
// The sets are the caller's.
func (l *Ledger) Live(key string) (lost, reinit *ranges.Set, err error) {
	lost, reinit = &ranges.Set{}, &ranges.Set{}
	if !l.Has(key) {
		return lost, reinit, nil
	}
	if err := l.loadKey(key); err != nil {
		return nil, nil, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	for off, w := range l.files[key].rows.from(0) {
		r := ranges.Range{Off: off, Len: w.length}
		if w.what.state == Lost {
			lost.Add(r)
		} else {
			reinit.Add(r)
		}
	}
	return lost, reinit, nil
}

func (l *Ledger) loadKey(key string) error {
	l.mu.RLock()
	loaded := l.files[key].loaded
	l.mu.RUnlock()
	if loaded {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.load(l.files[key])
}

// Rows yields the rows of one file, the state of one moment, by offset; with
// history also those that are no longer live.
func (l *Ledger) Rows(key string, history bool) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		rows, err := l.rowsOf(key, history)
		if err != nil {
			yield(Row{}, err)
			return
		}
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// All yields the rows of all files, by path. A file whose rows can't be read
// yields one error; the walk may go on.
func (l *Ledger) All(history bool) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for _, key := range l.keys(history) {
			for r, err := range l.Rows(key, history) {
				if !yield(r, err) {
					return
				}
			}
		}
	}
}

// keys lists the files that have rows, by path.
func (l *Ledger) keys(history bool) []string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	type name struct{ path, key string }
	var names []name
	for key, f := range l.files {
		if history || f.live > 0 {
			names = append(names, name{f.path, key})
		}
	}
	slices.SortFunc(names, func(x, y name) int {
		return cmp.Or(cmp.Compare(x.path, y.path), cmp.Compare(x.key, y.key))
	})
	keys := make([]string, len(names))
	for i, n := range names {
		keys[i] = n.key
	}
	return keys
}

// rowsOf is a snapshot of one file. Rows of a file that is not loaded are read
// and not kept. l.mu is held throughout, so that nothing moves meanwhile.
func (l *Ledger) rowsOf(key string, history bool) ([]Row, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[key]
	if f == nil {
		return nil, nil
	}
	var out []Row
	add := func(off int64, w row, k kind) { out = append(out, f.export(off, w, k)) }
	if f.loaded {
		for off, w := range f.rows.from(0) {
			add(off, w, *w.what)
		}
	} else if err := l.readRows(f, add); err != nil {
		return nil, err
	}
	if !history {
		return out, nil
	}
	for _, p := range l.history {
		if p.file == f {
			add(p.Off, p.row, *p.what)
		}
	}
	if err := l.readHistory(f, add); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(x, y Row) int {
		return cmp.Or(cmp.Compare(x.Off, y.Off), cmp.Compare(x.ID, y.ID))
	})
	// A transaction that ends meanwhile leaves its history in both places.
	return slices.CompactFunc(out, func(x, y Row) bool { return x.Off == y.Off && x.ID == y.ID }), nil
}

func (f *file) export(off int64, w row, k kind) Row {
	return Row{
		ID:          w.id,
		File:        f.id,
		Path:        f.path,
		Range:       ranges.Range{Off: off, Len: w.length},
		State:       k.state,
		Cause:       k.cause,
		Source:      k.source,
		Granularity: k.granularity,
		First:       fromNs(w.first),
		Changed:     fromNs(w.changed),
	}
}

// Closed reports whether a change closed this intent, and the journal has not
// let it be forgotten.
func (l *Ledger) Closed(intent uint64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, ok := l.closed[intent]
	return ok
}
