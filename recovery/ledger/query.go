package ledger

import (
	"cmp"
	"iter"
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Any reports whether there is any live row. It is cheap and takes no lock.
func (l *Ledger) Any() bool { return l.live.Load() > 0 }

// Count is the number of live rows. It is cheap and takes no lock.
func (l *Ledger) Count() int64 { return l.live.Load() }

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
	if err := l.Load(key); err != nil {
		return nil, nil, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[key]
	if f == nil {
		return lost, reinit, nil // its last row went since
	}
	for off, w := range f.rows.from(0) {
		r := ranges.Range{Off: off, Len: w.length}
		if w.what.state == Lost {
			lost.Add(r)
		} else {
			reinit.Add(r)
		}
	}
	return lost, reinit, nil
}

// Within is the bytes of a file in r that have that live state, in order,
// neighbours as one. It never asks the disk: Load has to have brought them into memory,
// if there are any (Has).
func (l *Ledger) Within(key string, r ranges.Range, state State) (in []ranges.Range) {
	if !l.Any() {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[key]
	if f == nil {
		return nil
	}
	for s := range f.rows.overlapping(r) {
		if s.what.state != state {
			continue
		}
		piece := s.Intersect(r)
		if n := len(in); n > 0 && in[n-1].End() == piece.Off {
			in[n-1].Len += piece.Len
			continue
		}
		in = append(in, piece)
	}
	return in
}

// Rows yields the rows of one file, the state of one moment, by offset; with
// history also those that are no longer live.
func (l *Ledger) Rows(key string, history bool) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		file, rows, err := l.rowsOf(key, history)
		if err != nil {
			yield(Row{}, err)
			return
		}
		for _, r := range rows {
			if !yield(file.export(r), nil) {
				return
			}
		}
	}
}

// All yields the rows of all files, by path. A file whose rows can't be read
// yields one error; the walk may go on.
func (l *Ledger) All(history bool) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for _, f := range l.Files(history) {
			for r, err := range l.Rows(f.ID.Key(), history) {
				if !yield(r, err) {
					return
				}
			}
		}
	}
}

// File is a file that has rows.
type File struct {
	ID   fileid.ID
	Path string // when last seen
}

// Files lists the files that have live rows, by path; with history also those
// that have others only. It never asks the disk.
func (l *Ledger) Files(history bool) []File {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var out []File
	for _, f := range l.files {
		if f.live > 0 || history && !f.isEmpty() {
			out = append(out, File{f.id, f.path})
		}
	}
	slices.SortFunc(out, func(x, y File) int {
		return cmp.Or(cmp.Compare(x.Path, y.Path), cmp.Compare(x.ID.Key(), y.ID.Key()))
	})
	return out
}

// rowsOf is a snapshot of one file, packed: 48 bytes a row. Rows of a file that
// is not loaded are read and not kept. While history is read there is no
// transaction, so that none moves from memory to disk.
func (l *Ledger) rowsOf(key string, history bool) (of File, out []rowAt, err error) {
	add := func(off int64, w row) { out = append(out, rowAt{off, w}) }
	if history {
		l.disk.Lock()
		defer l.disk.Unlock()
		if err := l.readHistory(key, add); err != nil {
			return File{}, nil, err
		}
	}
	past := out
	if !l.isLoaded(key) {
		if err := l.readRows(key, add); err != nil {
			return File{}, nil, err
		}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[key]
	if f == nil {
		return File{}, nil, nil
	}
	if f.loaded { // perhaps since, and changed
		out = slices.Concat(append([][]rowAt{past}, f.rows.chunks...)...)
	}
	if !history {
		return File{f.id, f.path}, out, nil
	}
	for _, p := range l.history {
		if p.file == f {
			out = append(out, rowAt{p.Off, p.row})
		}
	}
	slices.SortFunc(out, func(x, y rowAt) int {
		return cmp.Or(cmp.Compare(x.off, y.off), cmp.Compare(x.id, y.id))
	})
	// A transaction that may have failed leaves its history in both places.
	return File{f.id, f.path}, slices.CompactFunc(out, func(x, y rowAt) bool { return x.off == y.off && x.id == y.id }), nil
}

// isLoaded reports whether memory has all live rows of a file: of one that has
// none on disk, always.
func (l *Ledger) isLoaded(key string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := l.files[key]
	return f == nil || f.loaded
}

func (f File) export(r rowAt) Row {
	return Row{
		ID:          r.id,
		File:        f.ID,
		Path:        f.Path,
		Range:       ranges.Range{Off: r.off, Len: r.length},
		State:       r.what.state,
		Cause:       r.what.cause,
		Source:      r.what.source,
		Granularity: r.what.granularity,
		First:       fromNs(r.first),
		Changed:     fromNs(r.changed),
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
