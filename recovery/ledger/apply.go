package ledger

import (
	"slices"
	"sync"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// file is what is known of one file. Until loaded, its rows are on disk only.
type file struct {
	id     fileid.ID
	key    string
	path   string
	live   int // number of live rows, also before they are loaded
	past   int // number of rows in the history
	loaded bool
	load   *loading           // nil if nobody is reading the rows
	rows   rowMap             // live rows; disjoint
	dirty  map[int64]struct{} // offsets whose row, or its absence, is in no batch yet
	newest uint64             // number of the newest change that has touched the file

	recorded bool // the store has its record, once all batches that are sealed are written
}

// isEmpty reports whether there is nothing to keep of the file.
func (f *file) isEmpty() bool { return f.live == 0 && f.past == 0 }

// row is a live row without what its file and its offset say.
type row struct {
	id             uint64 // 0: gets one when it is put into the file
	length         int64
	first, changed int64 // ns since 1970
	what           *kind
}

// kind is what many rows share; equal kinds are one (kinds).
type kind struct {
	state         State
	cause, source string
	granularity   int64
}

// span is a row and where it is.
type span struct {
	ranges.Range
	row
}

// past is a row that became history and is not on disk yet.
type past struct {
	file *file
	span
}

func (w row) same(o row) bool {
	return w.what == o.what && w.first == o.first && w.changed == o.changed
}

// apply changes memory, as the change of number l.applied; all files are loaded
// and nothing can fail. l.mu is held.
func (l *Ledger) apply(c Change) {
	l.newest = max(l.newest, l.now().UnixNano()) // a clock that is set back does not turn the order round
	now := l.newest
	start := len(l.history)
	for _, x := range c.Lost {
		if !x.Range.Empty() {
			l.lose(l.file(x.File, x.Path), x, now)
		}
	}
	for _, m := range c.Moves {
		if f := l.files[m.File.Key()]; f != nil {
			l.see(f, m.Path)
			l.move(f, m, now, start)
		}
	}
	for _, id := range c.Close {
		l.closed[id] = struct{}{}
		l.closing = append(l.closing, id)
	}
	l.live.Store(l.rows)
}

func (l *Ledger) lose(f *file, x Loss, now int64) {
	what := l.kinds.share(kind{state: Lost, cause: x.Cause, source: x.Source, granularity: x.Granularity})
	pos := x.Range.Off
	for _, s := range f.overlapping(x.Range) {
		l.put(f, ranges.Between(pos, s.Off), row{first: now, changed: now, what: what})
		pos = s.End()
		if s.what.state == Lost || x.Cause == CauseCopied {
			continue
		}
		cut := s.Intersect(x.Range)
		w := l.carve(f, s, cut)
		w.what, w.changed = what, max(w.changed, now)
		l.put(f, cut, w)
	}
	l.put(f, ranges.Between(pos, x.Range.End()), row{first: now, changed: now, what: what})
}

// move gives live bytes another state. History that this change has made
// begins at index start.
func (l *Ledger) move(f *file, m Move, now int64, start int) {
	for _, s := range f.overlapping(m.Range) {
		if s.what.state == m.To {
			continue
		}
		cut := s.Intersect(m.Range)
		w := l.carve(f, s, cut)
		what := *w.what
		what.state = m.To
		w.what, w.changed = l.kinds.share(what), max(w.changed, now)
		switch {
		case m.To.Live():
			l.put(f, cut, w)
		case what.cause != CauseCopied:
			l.remember(f, span{cut, w}, start)
		}
	}
}

// put adds a row where there is none, and joins it with neighbours that are
// the same in all but place.
func (l *Ledger) put(f *file, r ranges.Range, w row) {
	if r.Empty() {
		return
	}
	if left, ok := f.rows.before(r.Off); ok && left.End() == r.Off && left.same(w) {
		l.drop(f, left.Off)
		r, w.id = ranges.Between(left.Off, r.End()), left.id
	}
	if right, ok := f.rows.get(r.End()); ok && right.same(w) {
		l.drop(f, r.End())
		r.Len += right.length
	}
	l.set(f, r, w)
}

// carve takes cut, a part of s, out of the file. What is left of s keeps its
// id in the first piece. The result is the row that cut was.
func (l *Ledger) carve(f *file, s span, cut ranges.Range) row {
	l.drop(f, s.Off)
	w := s.row
	for _, rest := range []ranges.Range{
		ranges.Between(s.Off, cut.Off),
		ranges.Between(cut.End(), s.End()),
	} {
		if !rest.Empty() {
			l.set(f, rest, w)
			w.id = 0
		}
	}
	return w
}

// remember adds a row to the history, joined with the one before if this
// change made that too and they are the same in all but place.
func (l *Ledger) remember(f *file, s span, start int) {
	if n := len(l.history); n > start {
		last := &l.history[n-1]
		if last.file == f && last.End() == s.Off && last.same(s.row) {
			last.Len += s.Len
			last.length = last.Len
			return
		}
	}
	s.row = l.named(s.row)
	s.length = s.Len
	l.history = append(l.history, past{f, s})
	f.past++
	l.touch(f)
}

func (l *Ledger) set(f *file, r ranges.Range, w row) {
	w = l.named(w)
	w.length = r.Len
	f.rows.set(r.Off, w)
	f.live++
	l.rows++
	l.touchRow(f, r.Off)
}

func (l *Ledger) drop(f *file, off int64) {
	f.rows.delete(off)
	f.live--
	l.rows--
	l.touchRow(f, off)
}

func (l *Ledger) touchRow(f *file, off int64) {
	l.touch(f)
	if f.dirty == nil {
		f.dirty = map[int64]struct{}{}
	}
	before := len(f.dirty)
	f.dirty[off] = struct{}{}
	l.dirtyRows += len(f.dirty) - before
}

func (l *Ledger) touch(f *file) {
	l.dirty[f] = struct{}{}
	f.newest = l.applied
}

func (l *Ledger) named(w row) row {
	if w.id == 0 {
		w.id = l.nextID
		l.nextID++
	}
	return w
}

// file is the entry for a file, made if there is none.
func (l *Ledger) file(id fileid.ID, path string) *file {
	key := id.Key()
	f := l.files[key]
	if f == nil {
		f = &file{id: id, key: key, loaded: true}
		l.files[key] = f
	}
	l.see(f, path)
	return f
}

// see notes the path by which a file was seen last.
func (l *Ledger) see(f *file, path string) {
	if path != "" && path != f.path {
		f.path = path
		l.touch(f)
	}
}

// kinds is all kinds that rows in memory have.
type kinds struct {
	mu  sync.Mutex // guards all; nothing is waited for while it is held
	all map[kind]*kind
}

// share is the one that equals k.
func (s *kinds) share(k kind) *kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	if shared := s.all[k]; shared != nil {
		return shared
	}
	if s.all == nil {
		s.all = map[kind]*kind{}
	}
	shared := new(kind) // not &k: that would be made at each call
	*shared = k
	s.all[k] = shared
	return shared
}

// isNews reports whether losses name a byte that is not lost yet.
func (l *Ledger) isNews(losses []Loss) bool {
	for _, x := range losses {
		lost := int64(0)
		if f := l.files[x.File.Key()]; f != nil {
			for _, s := range f.overlapping(x.Range) {
				if s.what.state == Lost {
					lost += s.Intersect(x.Range).Len
				}
			}
		}
		if lost < x.Range.Len {
			return true
		}
	}
	return false
}

// overlapping lists the live rows, whole, that have a byte in r.
func (f *file) overlapping(r ranges.Range) []span { return slices.Collect(f.rows.overlapping(r)) }
