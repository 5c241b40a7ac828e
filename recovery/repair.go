package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// step numbers the instants of a repair at which a crash is tested.
type step int

const (
	intentDurable step = iota + 1 // (1) of the protocol
	pagesWritten                  // (2)
	pagesDurable                  // (3)
	intentClosed                  // (4)
	pagePunched                   // between the two calls of the punch rung
	pageCleared                   // one page of several was written
)

// mend is one bad page and what it shall hold.
type mend struct {
	page  ranges.Range // 4096 bytes, aligned
	fresh ranges.Range // what the application writes of it; empty for a repair of ours
	data  []byte       // of fresh

	content []byte // the page as it shall be; zero beyond the end of the file
	before  *page  // what was salvaged; nil if all is overwritten
	intent  *journal.Intent
	rung    string // of the ladder that cleared it
}

// repair clears bad pages and rewrites them, so that a crash at any instant
// leaves every byte on the media or in the journal:
//
//  1. the intent is durable
//  2. the pages are written, one aligned page per call: the only shape that
//     every kernel clears one page by (pmem_recovery_write, Linux ≥ 5.19)
//  3. the pages are durable, and the file has its right size
//  4. in one durable step of the ledger the intent is closed and the rows moved
//
// The caller holds the inode exclusively for all of it.
type repair struct {
	file      *File
	damage    *damage
	size, end int64 // of the file: before, and after
	mends     []*mend
	own       bool // on behalf of a write of the application; otherwise mtime is restored
	writeback bool
	who       Caller
}

// run returns the first page that could not be repaired, and why. Those in
// front of it are repaired.
func (r *repair) run() (failed ranges.Range, err error) {
	first := r.mends[0].page
	if r.file.engine.ReadOnly {
		return first, &RepairError{Step: "write", Page: first, Err: unix.EROFS}
	}
	for _, m := range r.mends {
		if err := r.prepare(m); err != nil {
			return m.page, err
		}
	}
	intents, err := r.begin()
	if err != nil {
		r.file.emitFailure("journal", first, err)
		return first, &RepairError{Step: "journal", Page: first, Err: err}
	}
	r.file.engine.reached(intentDurable)
	cleared, clearErr := r.clearAll()
	u := &unfinished{target: r.end, mends: cleared, change: r.change(cleared, intents)}
	r.file.engine.reached(pagesWritten)
	if err := r.file.finish(r.damage, u); err != nil {
		r.damage.leaveOpen(u)
		return first, err
	}
	r.report(cleared)
	if clearErr != nil {
		return r.mends[len(cleared)].page, clearErr
	}
	return ranges.Range{}, nil
}

// prepare works out what the page shall hold.
func (r *repair) prepare(m *mend) error {
	m.content = make([]byte, ranges.PageSize)
	inFile := m.page.Intersect(ranges.Between(0, r.size))
	if !m.fresh.Contains(inFile) {
		var err error
		if m.before, err = r.salvaged(m.page); err != nil {
			return err
		}
		copy(m.content, m.before.data[:])
	}
	if !m.fresh.Empty() {
		copy(m.content[m.fresh.Off-m.page.Off:], m.data)
	}
	return nil
}

// salvaged is what can be had of the page now. A page that turns out to read
// well after all has nothing missing.
func (r *repair) salvaged(where ranges.Range) (*page, error) {
	bad, err := r.file.inspect(where, r.size, r.who)
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 {
		return bad[0], nil
	}
	p := newPage(where.Off, r.size)
	if err := p.retry(r.file.below); err != nil {
		return nil, r.file.trouble(where, err)
	}
	return p, nil
}

// begin makes the intents durable: one with an image for each page of which
// something is kept or that reaches past the end, one without for all others.
func (r *repair) begin() ([]*journal.Intent, error) {
	st, err := r.file.below.Stat()
	if err != nil {
		return nil, err
	}
	base := journal.Intent{
		FS: r.file.engine.FS, File: r.damage.id, Path: r.file.path(), Size: r.size, End: r.end,
		Mtime: st.Mtime, Ctime: st.Ctime, RestoreMtime: !r.own, Boot: r.file.engine.boot, Time: time.Now().UnixNano(),
	}
	var intents []*journal.Intent
	var plain *journal.Intent
	for _, m := range r.mends {
		lost := r.damage.lostWithin(m.page)
		if m.before == nil && m.page.End() <= r.end {
			if plain == nil || m.page.End()-plain.Range.Off > journal.MaxPages*ranges.PageSize {
				in := base
				plain = &in
				plain.Range = m.page
				intents = append(intents, plain)
			}
			plain.Range = ranges.Between(plain.Range.Off, m.page.End())
			plain.Lost = append(plain.Lost, lost...)
			plain.Overwritten = append(plain.Overwritten, m.fresh)
			m.intent = plain
			continue
		}
		in := base
		m.intent = &in
		m.intent.Range, m.intent.Image, m.intent.Lost = m.page, m.content, lost
		m.intent.Missing = m.stillMissing()
		if !m.fresh.Empty() {
			m.intent.Overwritten = []ranges.Range{m.fresh}
		}
		intents = append(intents, m.intent)
	}
	return intents, r.file.engine.Journal.Begin(intents...)
}

// stillMissing is the bytes that will be zero because they could not be had.
func (m *mend) stillMissing() []ranges.Range {
	if m.before == nil {
		return nil
	}
	missing := ranges.Of(m.before.missing.Slice()...)
	missing.Remove(m.fresh)
	return missing.Slice()
}

// clearAll writes the pages in order, and returns those in front of the first
// that the medium refuses.
func (r *repair) clearAll() (cleared []*mend, err error) {
	for i, m := range r.mends {
		if err := r.clear(m); err != nil {
			r.file.emitFailure("write", m.page, err)
			return r.mends[:i], err
		}
		r.file.engine.reached(pageCleared)
	}
	return r.mends, nil
}

// clear writes one page by the first rung of the ladder that works.
func (r *repair) clear(m *mend) error {
	n, err := r.file.below.Pwrite(m.content, m.page.Off)
	if err == nil && n == len(m.content) {
		m.rung = "page-written"
		return nil
	}
	if err != nil && !mayBePoison(err) {
		return &RepairError{Step: "write", Page: m.page, Err: err}
	}
	if r.file.below.Corroborate(m.page) != media.Listed {
		return &RepairError{Step: "write", Page: m.page, Err: errors.Join(err, unix.EIO)}
	}
	return r.punch(m)
}

// punch is the rung for kernels before 5.19, where no write clears a listed
// page: its block is freed, and the write gets a clean one. It destroys the
// page for a moment, so the journal must hold the image, and know of the punch:
// a hole that replay finds there is then ours.
func (r *repair) punch(m *mend) error {
	fail := func(err error) error { return &RepairError{Step: "punch", Page: m.page, Err: err} }
	e := r.file.engine
	if m.intent.Image == nil {
		in := *m.intent
		in.Range, in.Image, in.Overwritten = m.page, m.content, []ranges.Range{m.fresh}
		in.Lost = r.damage.lostWithin(m.page)
		if err := e.Journal.Begin(&in); err != nil {
			return fail(err)
		}
		m.intent = &in
	}
	if err := e.Journal.Punching(m.intent.ID, time.Now().UnixNano()); err != nil {
		return fail(err)
	}
	const punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := r.file.below.Allocate(punchHole, m.page.Off, m.page.Len); err != nil {
		return fail(err)
	}
	e.reached(pagePunched)
	n, err := r.file.below.Pwrite(m.content, m.page.Off)
	if err != nil || n < len(m.content) {
		r.owe(m)
		return fail(errors.Join(err, unix.EIO))
	}
	m.rung = "punched-and-written"
	return nil
}

// owe keeps the bytes of a page that was punched and could not be written: they
// are served from the journal until a write of the page succeeds.
func (r *repair) owe(m *mend) {
	p := m.before
	if p == nil {
		return // all of it was the application's, which gets the error
	}
	err := r.file.engine.Journal.SaveImage(r.damage.id, r.file.path(), journal.Image{
		Page: m.page.Off, Data: slices.Clone(p.data[:]), Missing: p.missing.Slice(), Pending: true,
	})
	if err != nil {
		r.file.emitFailure("journal", m.page, err)
	}
}

// change is what the repair of the pages does to the ledger.
func (r *repair) change(cleared []*mend, intents []*journal.Intent) ledger.Change {
	var c ledger.Change
	path := r.file.path()
	for _, in := range intents {
		c.Close = append(c.Close, in.ID)
	}
	for _, m := range cleared {
		if !slices.Contains(c.Close, m.intent.ID) {
			c.Close = append(c.Close, m.intent.ID)
		}
		c.Moves = append(c.Moves, r.file.overwrites(r.damage, m.data, m.fresh, r.writeback)...)
		// Whatever is left of the page's rows is zero on clean media now.
		for _, lost := range r.damage.lostWithin(m.page) {
			rest := ranges.Of(lost)
			for _, mv := range c.Moves {
				rest.Remove(mv.Range)
			}
			for piece := range rest.All() {
				c.Moves = append(c.Moves, ledger.Move{File: r.damage.id, Path: path, Range: piece, To: ledger.Reinitialized})
			}
		}
	}
	return c
}

// report tells of the pages that are clean again, in one event a run.
func (r *repair) report(cleared []*mend) {
	r.file.engine.counters.repairedPages.Add(int64(len(cleared)))
	for i := 0; i < len(cleared); {
		ev := r.file.event(event.Reinitialized, cleared[i].page, r.who)
		ev.Action = cleared[i].rung
		for ; i < len(cleared) && cleared[i].page.Off <= ev.Offset+ev.Length && cleared[i].rung == ev.Action; i++ {
			ev.Length = cleared[i].page.End() - ev.Offset
			if b := cleared[i].before; b != nil {
				ev.Salvaged += b.salvagedBytes()
			}
		}
		r.file.engine.Events.Emit(ev)
	}
}

// unfinished is a repair whose pages are written and whose intents are open.
type unfinished struct {
	target int64 // the size that the file must have at most, if the pages reached past it
	mends  []*mend
	change ledger.Change
}

// finish does steps 3 and 4. It may be called again after it failed.
func (f *File) finish(d *damage, u *unfinished) error {
	if n := len(u.mends); n > 0 {
		last := u.mends[n-1].page
		if last.End() > u.target {
			if err := f.shrink(u.target); err != nil {
				return &RepairError{Step: "truncate", Page: last, Err: err}
			}
		}
		if err := f.settle(u.mends); err != nil {
			return err
		}
	}
	f.engine.reached(pagesDurable)
	if err := f.engine.Ledger.Commit(u.change); err != nil {
		f.emitFailure("ledger", u.span(), err)
		return &RepairError{Step: "ledger", Page: u.span(), Err: err}
	}
	f.engine.reached(intentClosed)
	d.apply(u.change)
	for _, m := range u.mends {
		d.forget(m.page)
		f.dropImages(d, m.page)
	}
	return f.engine.closed(u.change.Close)
}

// shrink takes back what a whole-page write of the tail page added to the file.
func (f *File) shrink(target int64) error {
	st, err := f.below.Stat()
	if err != nil {
		return err
	}
	if st.Size <= target {
		return nil
	}
	return f.below.Truncate(target)
}

// settle makes the pages durable, restores the time of a repair of ours, and
// reads back the pages of which something was salvaged.
func (f *File) settle(mends []*mend) error {
	if in := mends[0].intent; in.RestoreMtime {
		if err := f.below.SetMtime(in.Mtime); err != nil {
			return &RepairError{Step: "sync", Page: mends[0].page, Err: err}
		}
	}
	if err := f.below.Sync(false); err != nil {
		return &RepairError{Step: "sync", Page: mends[0].page, Err: err}
	}
	for _, m := range mends {
		if m.before == nil {
			continue
		}
		inFile := m.page.Intersect(ranges.Between(0, m.intent.End))
		got := make([]byte, inFile.Len)
		n, err := f.below.Pread(got, inFile.Off)
		if err != nil || !bytes.Equal(got[:n], m.content[:inFile.Len]) {
			return &RepairError{Step: "read-back", Page: m.page, Err: errors.Join(err, unix.EIO)}
		}
	}
	return nil
}

func (u *unfinished) span() ranges.Range {
	if len(u.mends) == 0 {
		return ranges.Range{}
	}
	return ranges.Between(u.mends[0].page.Off, u.mends[len(u.mends)-1].page.End())
}

// closed tells the journal that intents are closed, lazily: the ledger's word
// counts until the checkpoint.
func (e *Engine) closed(ids []uint64) error {
	if err := e.Journal.Close(ids...); err != nil {
		return &RepairError{Step: "journal", Err: err}
	}
	const between = 1024 // intents between two checkpoints
	if before := e.closes.Add(uint64(len(ids))) - uint64(len(ids)); before/between != (before+uint64(len(ids)))/between {
		if err := e.checkpoint(); err != nil {
			return &RepairError{Step: "journal", Err: fmt.Errorf("checkpoint: %w", err)}
		}
	}
	return nil
}

func (e *Engine) reached(s step) {
	if e.at != nil {
		e.at(s)
	}
}

// leaveOpen remembers a repair that could not be finished: nobody writes its
// pages before it is.
func (d *damage) leaveOpen(u *unfinished) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, u)
	for _, m := range u.mends {
		d.openPages.Add(m.page)
	}
}

// finishOpen finishes repairs that could not be finished before. The caller
// holds the inode exclusively.
func (f *File) finishOpen(d *damage) error {
	for {
		d.mu.Lock()
		if len(d.open) == 0 {
			d.openPages = ranges.Set{}
			d.mu.Unlock()
			return nil
		}
		u := d.open[0]
		d.mu.Unlock()
		if err := f.finish(d, u); err != nil {
			return err
		}
		d.mu.Lock()
		d.open = d.open[1:]
		d.mu.Unlock()
	}
}

// mendPage repairs one page for its own sake; nothing happens if it is clean.
// The caller holds the inode exclusively.
func (f *File) mendPage(d *damage, page ranges.Range, size int64, who Caller) error {
	bad, err := f.inspect(page, size, who)
	if err != nil || len(bad) == 0 {
		return err
	}
	rep := &repair{file: f, damage: d, size: size, end: size, mends: []*mend{{page: bad[0].whole()}}, who: who}
	_, err = rep.run()
	return err
}

// mendTail repairs the bad tail page of a file that grows from off on: XFS
// touches it then, and other filesystems leave the poison in the middle of the
// file (lab facts, "The last page of a file").
func (f *File) mendTail(d *damage, size, off int64, who Caller) error {
	tail := ranges.Page(size)
	if size == tail.Off || off < tail.End() || !d.isBad(tail) {
		return nil
	}
	return f.mendPage(d, tail, size, who)
}
