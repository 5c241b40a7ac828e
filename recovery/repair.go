package recovery

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/locate"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// mend is one bad page and what it shall hold.
type mend struct {
	page  ranges.Range // 4096 bytes, aligned
	fresh ranges.Range // what the application writes of it; empty for a repair of ours
	data  []byte       // of fresh

	written []ranges.Range // of fresh, what is certainly the application's: zeros of a writeback may be ours, those of a copy stand for lost bytes
	content []byte         // the page as it shall be; zero beyond the end of the file
	before  *page          // what was salvaged; nil if all is overwritten
	intent  *journal.Intent
	rung    string       // of the ladder that cleared it
	was     *media.Place // where the page lay when it was cleared; nil: where it lies
	sharers []sharer     // other owners of the page, who lost what this file has lost
}

// repair clears bad pages and rewrites them, so that a crash at any instant
// leaves every byte on the media or in the journal:
//
//  1. the intent is durable
//  2. the pages are written, one aligned page per call, which is the only shape that
//     every kernel clears one page by (pmem_recovery_write, Linux ≥ 5.19); neighbours
//     that are overwritten whole in one call (overwrite)
//  3. the pages are durable, and the file has its right size
//  4. in one durable step of the ledger the intent is closed and the rows moved
//
// The caller holds the inode exclusively for all of it.
type repair struct {
	file      *File
	damage    *damage
	size, end int64 // of the file: before, and after
	mends     []*mend
	data      []byte // of the application's write, from at on
	at        int64
	intents   []*journal.Intent
	own       bool // on behalf of a write of the application; otherwise mtime is restored
	writeback bool
	freeing   bool // the application gives the pages up, and whatever programs write there past us
	who       Caller
	path      func() string // File.path, asked once
	patience  time.Time     // until when lists are waited for; zero: not yet

	found  *locate.Found // what the bytes sought are used for; nil: not asked yet
	sought *ranges.Set
}

// run returns the first page that could not be repaired, and why. Those in
// front of it are repaired.
func (r *repair) run() (failed ranges.Range, err error) {
	first := r.mends[0].page
	if r.file.engine.ReadOnly {
		return first, &RepairError{Step: "write", Page: first, Err: unix.EROFS}
	}
	if err := r.file.mayRepair(first); err != nil {
		return first, err
	}
	r.path = r.file.recentPath
	if r.damage.id.Handle == "" { // the name is all that finds the file again
		r.path = sync.OnceValue(r.file.path)
	}
	shared := r.file.ino.isShared() // it may end any time
	for _, m := range r.mends {
		if err := r.file.engine.endClosing(r.damage.key, m.page); err != nil {
			return first, err
		}
	}
	for _, m := range r.mends {
		if err := r.prepare(m); err != nil {
			return first, err
		}
	}
	if err := r.begin(); err != nil {
		r.file.emitFailure("journal", first, err)
		return first, &RepairError{Step: "journal", Page: first, Err: err}
	}
	r.file.engine.at.Hit(failpoint.IntentDurable)
	cleared, clearErr := r.clearAll()
	u := &unfinished{target: r.end, mends: cleared, change: r.change(cleared), shares: r.file.ino.shares, shared: shared}
	r.file.engine.at.Hit(failpoint.PagesWritten)
	if err := r.file.finish(r.damage, u); err != nil {
		r.file.leaveOpen(r.damage, u)
		return first, err
	}
	r.report(cleared)
	if clearErr != nil {
		return r.mends[len(cleared)].page, clearErr
	}
	return ranges.Range{}, nil
}

// errShared says why a page may not be rewritten; nextAfter what to do about it.
var errShared = errors.New("programs have the file open or mapped past mendfs, and a rewrite could destroy what they write")

// mayRewrite fails if a bad page would be rewritten with more than fresh, the
// bytes of an ordinary write, while the kernel may be writing the file behind
// our back.
func (f *File) mayRewrite(page, fresh ranges.Range, writeback bool) error {
	if !f.ino.isShared() || fresh == page && !writeback {
		return nil
	}
	err := &RepairError{Step: "share", Page: page, Err: errShared}
	f.emitFailure(err.Step, page, err)
	return err
}

// aliveFor is how long a filesystem that was seen to be alive is taken to be: to ask
// costs as much as a quarter of a repair. clear asks again where a write is refused.
const aliveFor = 100 * time.Millisecond

// mayRepair fails where the filesystem is down, or was made read-only below the mount
// (by a remount, or by the kernel): its errno is the answer then, and the medium is not
// to blame.
func (f *File) mayRepair(page ranges.Range) error {
	if seen, now := &f.engine.seenAlive, time.Now().UnixNano(); now-seen.Load() >= int64(aliveFor) {
		if err := f.alive(page); err != nil {
			return err
		}
		seen.Store(now)
	}
	if !isReadOnly(f.below.Fd()) {
		return nil
	}
	err := fmt.Errorf("the backing filesystem is read-only: %w", unix.EROFS)
	f.emitFailure("read-only", page, err)
	return err
}

// isReadOnly reports whether the filesystem can't be written, for as far as it says so.
func isReadOnly(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0
}

// prepare works out what the page shall hold.
func (r *repair) prepare(m *mend) error {
	if !r.freeing {
		if err := r.file.mayRewrite(m.page, m.fresh, r.writeback); err != nil {
			return err
		}
	}
	inFile := m.page.Intersect(ranges.Between(0, r.size))
	m.written = r.damage.notCopied(m.fresh)
	if r.writeback {
		m.written = nonZero(m.data, m.fresh.Off)
	}
	if r.writeback || !m.fresh.Contains(inFile) {
		var err error
		if m.before, err = r.salvaged(m.page); err != nil {
			return err
		}
	}
	if m.fresh == m.page && m.before == nil {
		m.content = m.data // which nobody changes before the write has returned
		return nil
	}
	m.content = make([]byte, ranges.PageSize)
	if m.before != nil {
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
	for try := 1; ; try++ {
		bad, err := r.file.inspect(where, r.size, r.who)
		if err != nil {
			return nil, err
		}
		if len(bad) > 0 {
			return bad[0], nil
		}
		p := newPage(where.Off, r.size)
		if err = p.retry(r.file.below); err == nil {
			return p, nil
		}
		if try == tries || !mayBePoison(err) {
			return nil, r.file.trouble(where, err)
		}
	}
}

// begin makes the intents durable: one with an image for each page of which
// something is kept or that reaches past the end, one without for all others.
func (r *repair) begin() error {
	st, err := r.file.below.Stat()
	if err != nil {
		return err
	}
	base := journal.Intent{
		FS: r.file.engine.FS, File: r.damage.id, Path: r.path(), Size: r.size, End: r.end,
		Mtime: st.Mtime, Ctime: st.Ctime, RestoreMtime: !r.own, Boot: r.file.engine.boot, Time: time.Now().UnixNano(),
	}
	var plain *journal.Intent
	for _, n := range runs(r.mends) {
		if m := n.mends[0]; !m.isWhole() || m.page.End() > r.end {
			m.intent = r.imageIntent(base, m)
			r.intents = append(r.intents, m.intent)
			continue
		}
		if plain == nil || n.pages.End()-plain.Range.Off > journal.MaxPages*ranges.PageSize {
			in := base
			plain = &in
			plain.Range = n.pages
			r.intents = append(r.intents, plain)
		}
		plain.Range = ranges.Between(plain.Range.Off, n.pages.End())
		plain.Lost = append(plain.Lost, r.damage.lostWithin(n.pages)...)
		plain.Overwritten = append(plain.Overwritten, n.fresh)
		for _, m := range n.mends {
			plain.Sums = append(plain.Sums, sumOf(m.content))
			m.intent = plain
		}
	}
	return r.file.engine.Journal.Begin(r.intents...)
}

// run is a page to be mended, or neighbours that are overwritten whole.
type run struct {
	pages, fresh ranges.Range
	mends        []*mend
}

// runs takes neighbours together, as far as an intent without an image goes.
func runs(mends []*mend) []run {
	var out []run
	for len(mends) > 0 {
		n := 1
		for n < min(len(mends), journal.MaxPages) && mends[n-1].isWhole() && mends[n].isWhole() && mends[n-1].page.End() == mends[n].page.Off {
			n++
		}
		r := run{pages: mends[0].page, fresh: mends[0].fresh, mends: mends[:n]}
		if n > 1 {
			r.pages = ranges.Between(r.pages.Off, mends[n-1].page.End())
			r.fresh = r.pages
		}
		out, mends = append(out, r), mends[n:]
	}
	return out
}

// isWhole reports whether all of the page is the application's.
func (m *mend) isWhole() bool {
	return m.before == nil && m.fresh == m.page && len(m.written) == 1 && m.written[0] == m.page
}

// imageIntent is the intent for one page, with what the page shall hold.
func (r *repair) imageIntent(in journal.Intent, m *mend) *journal.Intent {
	in.ID = 0
	in.Range, in.Image, in.Lost = m.page, m.content, r.damage.lostWithin(m.page)
	in.Missing = m.stillMissing()
	in.Overwritten, in.Sums = nil, nil // the image says it all
	if !m.fresh.Empty() {
		in.Overwritten = m.written
	}
	return &in
}

// stillMissing is the bytes that will be zero because they could not be had.
func (m *mend) stillMissing() []ranges.Range {
	if m.before == nil {
		return nil
	}
	missing := ranges.Of(m.before.missing.Slice()...)
	for _, w := range m.written {
		missing.Remove(w)
	}
	return missing.Slice()
}

// change is what the repair of the pages does to the ledger. Every intent of the
// repair is closed by it, but those that a page without an image depends on.
func (r *repair) change(cleared []*mend) ledger.Change {
	var c ledger.Change
	for _, in := range r.intents {
		if !r.damage.isUnclosed(in.ID) {
			c.Close = append(c.Close, in.ID)
		}
	}
	for _, n := range runs(cleared) {
		for _, m := range n.mends {
			c.Close = append(c.Close, r.damage.unclosedOf(m.page)...)
		}
		moves := r.file.overwrites(r.damage, n.mends[0].data, n.fresh, r.writeback, r.path)
		// Whatever is left of the pages' rows is zero on clean media now.
		rest := ranges.Of(r.damage.lostWithin(n.pages)...)
		for _, mv := range moves {
			rest.Remove(mv.Range)
		}
		for piece := range rest.All() {
			moves = append(moves, ledger.Move{File: r.damage.id, Path: r.path(), Range: piece, To: ledger.Reinitialized})
		}
		c.Moves = append(c.Moves, moves...)
	}
	return c
}

// report tells of the pages that are clean again, in one event a run.
func (r *repair) report(cleared []*mend) {
	r.file.engine.counters.repairedPages.Add(int64(len(cleared)))
	for i := 0; i < len(cleared); {
		ev := r.file.placed(r.file.eventAt(r.path(), event.Reinitialized, cleared[i].page, r.who))
		if was := cleared[i].was; was != nil {
			ev.Device, ev.Sector = was.Device, &was.Sector
		}
		ev.Action = cleared[i].rung
		for ; i < len(cleared) && cleared[i].page.Off <= ev.Offset+ev.Length && cleared[i].rung == ev.Action; i++ {
			ev.Length = cleared[i].page.End() - ev.Offset
			if b := cleared[i].before; b != nil {
				ev.Salvaged += b.salvagedBytes()
			}
			for _, s := range cleared[i].sharers {
				ev.Sharers = append(ev.Sharers, s.String())
			}
		}
		r.file.engine.Events.Emit(ev)
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
