package recovery

import (
	"slices"
	"sync"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// damage is what is known of a file that was hurt, besides the ledger's rows, which
// are in memory as long as there is one.
type damage struct {
	id     fileid.ID
	key    string
	ledger *ledger.Ledger

	mu sync.Mutex // guards all below
	// path is the file's name when asked for at pathAt (recentPath).
	path   string
	pathAt time.Time
	// blank says that the ledger had nothing of the file, and was told nothing.
	blank bool
	// bad are pages served from what is known: their image, or zeros where
	// there is none. unsure are bad pages on nobody's list, which are asked
	// again once per request.
	bad, unsure ranges.Set
	// suspected are pages that are listed, and that nobody has met yet (Detected).
	suspected ranges.Set
	images    ranges.Set // pages with an image in the journal
	// held is what the first touch of a page gave a reader that has not settled
	// yet: nobody else can have it from the medium any more.
	held map[int64]*claim
	// changed is what repairs put into pages other than the application asked for,
	// and nobody has taken (TakeChanged).
	changed ranges.Set
	copied  ranges.Set // guarded by the inode too, exclusively
	// open are repairs that were written but could not be closed, openPages their
	// pages: nobody may write there until the intents are closed.
	openPages ranges.Set
	open      []*unfinished
	// unclosed are intents, by page, whose image could not be kept elsewhere:
	// they are closed with the next repair of the page.
	unclosed map[int64][]uint64
}

// loadImages finds the pages that have an image. Those whose image is owed to
// the medium are bad; the others are until the medium is asked.
func (d *damage) loadImages(j *journal.Journal) {
	d.images = *ranges.Of(j.Pages(d.key).Slice()...)
	for r := range j.PendingPages(d.key).All() {
		d.bad.Add(r)
	}
}

// recheck makes every page unknown again but those that are owed an image.
func (d *damage) recheck(j *journal.Journal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad, d.unsure = ranges.Set{}, ranges.Set{}
	d.loadImages(j)
}

// any reports whether there is anything.
func (d *damage) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range []*ranges.Set{&d.bad, &d.unsure, &d.suspected, &d.images} {
		if !s.Empty() {
			return true
		}
	}
	return len(d.open)+len(d.unclosed) > 0 || d.ledger.Has(d.key)
}

// isBlank reports whether nothing is known, nor waits to be durable, nor is in
// the hands of a reader.
func (d *damage) isBlank() bool {
	if d.any() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blank && len(d.held) == 0
}

// mayHide reports whether a hole or the size below may not be what it seems.
func (d *damage) mayHide() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.images.Empty() || len(d.open) > 0
}

// noteChanged notes a page for TakeChanged.
func (d *damage) noteChanged(r ranges.Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed.Add(r.Widen(ranges.PageSize))
}

// isNews reports whether a read of r that met just the given bad pages has
// found something out: lost bytes that are there again, or a page that has an
// image and is not bad.
func (d *damage) isNews(r ranges.Range, bad *knownBad) bool {
	for _, lost := range d.lostWithin(r) {
		if !oneContains(bad.missing, lost) {
			return true
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for kept := range d.images.Within(r) {
		if !oneContains(bad.pages, kept) {
			return true
		}
	}
	return false
}

// imagesWithin is the pages touched by r that have an image.
func (d *damage) imagesWithin(r ranges.Range) []ranges.Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(d.images.Within(r.Widen(ranges.PageSize)))
}

// concernsRead reports whether a read of r needs more than one pread.
func (d *damage) concernsRead(r ranges.Range) bool {
	r = r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(r) || d.unsure.Overlaps(r) || d.suspected.Overlaps(r) || d.images.Overlaps(r) || d.openPages.Overlaps(r) || len(d.lostWithin(r)) > 0
}

// concernsWrite reports whether a write of r needs more than one pwrite.
func (d *damage) concernsWrite(r ranges.Range) bool { return d.concernsRead(r) }

// isBad reports whether the page is known bad.
func (d *damage) isBad(page ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(page) || d.unsure.Overlaps(page) || d.suspected.Overlaps(page)
}

// nextBad is the first pages that touch r and are known bad, or in also; the
// zero range if there are none.
func (d *damage) nextBad(r ranges.Range, also *ranges.Set) ranges.Range {
	wide := r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	first := ranges.Range{Off: wide.End()}
	for _, s := range [...]*ranges.Set{&d.bad, &d.unsure, &d.suspected, also} {
		if s == nil {
			continue
		}
		for piece := range s.Within(wide) {
			if piece.Off < first.Off {
				first = piece
			}
			break
		}
	}
	if first.Empty() {
		return ranges.Range{}
	}
	return first
}

// learn makes a classified page, of which all is kept, known.
func (d *damage) learn(p *page) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.suspected.Remove(p.whole())
	if p.verdict == media.Listed {
		d.bad.Add(p.whole())
	} else {
		d.unsure.Add(p.whole())
	}
}

// forget makes a page that reads well again unknown.
func (d *damage) forget(r ranges.Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad.Remove(r)
	d.unsure.Remove(r)
	d.suspected.Remove(r)
}

func (d *damage) isUnsure(page ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unsure.Overlaps(page)
}

// badPages is a copy of the pages known bad.
func (d *damage) badPages() *ranges.Set {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := ranges.Of(d.bad.Slice()...)
	for _, more := range []*ranges.Set{&d.unsure, &d.suspected} {
		for r := range more.All() {
			s.Add(r)
		}
	}
	return s
}

// notLost is the pieces of r that are not recorded as lost.
func (d *damage) notLost(r ranges.Range) (gaps []ranges.Range) {
	pos := r.Off
	for _, lost := range d.lostWithin(r) {
		gaps = join(gaps, ranges.Between(pos, lost.Off))
		pos = lost.End()
	}
	return join(gaps, ranges.Between(pos, r.End()))
}

// lostWithin is the pieces of r that are recorded as lost.
func (d *damage) lostWithin(r ranges.Range) []ranges.Range {
	return d.ledger.Within(d.key, r, ledger.Lost)
}

// setCopied says which bytes of the write under way at r stand for lost ones.
func (d *damage) setCopied(r ranges.Range, zeros []ranges.Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.copied = ranges.Set{}
	for _, z := range zeros {
		d.copied.Add(z.Shift(r.Off).Intersect(r))
	}
}

func (d *damage) notCopied(r ranges.Range) []ranges.Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(d.copied.Gaps(r))
}

// reinitWithin is the pieces of r that are zero on clean media.
func (d *damage) reinitWithin(r ranges.Range) []ranges.Range {
	return d.ledger.Within(d.key, r, ledger.Reinitialized)
}

// recorded says that the ledger took a change.
func (d *damage) recorded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blank = false
}

// claim is a page that a reader is the first to touch. What it gives stands as
// long as nothing changes the page: the claim is let go then.
type claim struct {
	off  int64
	page *page // nil while it is being read
}

// claim must be called before a byte of the page is read that others shall have.
func (d *damage) claim(off int64) *claim {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held == nil {
		d.held = map[int64]*claim{}
	}
	if d.held[off] == nil {
		d.held[off] = &claim{off: off}
	}
	return d.held[off]
}

// hold lets other readers of the page have what p has.
func (d *damage) hold(c *claim, p *page) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[c.off] == c && (c.page == nil || p.missing.Bytes() < c.page.missing.Bytes()) {
		c.page = p
	}
}

// abandon is the end of a claim that held nothing.
func (d *damage) abandon(c *claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[c.off] == c && c.page == nil {
		delete(d.held, c.off)
	}
}

// letGo ends the claims to pages touched by r: they are changed.
func (d *damage) letGo(r ranges.Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for off := range d.held {
		if ranges.Page(off).Overlaps(r) {
			delete(d.held, off)
		}
	}
}

// takeHeld adds what another reader has of the page. The caller holds the inode
// exclusively.
func (d *damage) takeHeld(p *page) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.held[p.off]
	delete(d.held, p.off)
	if c != nil && c.page != nil && c.page != p {
		p.merge(c.page.data[:], c.page.missing.Slice())
	}
}
