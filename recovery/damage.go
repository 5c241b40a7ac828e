package recovery

import (
	"fmt"
	"slices"
	"sync"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// damage is what is known of a file that was hurt.
type damage struct {
	id  fileid.ID
	key string

	mu sync.Mutex // guards all below
	// bad are pages served from what is known: their image, or zeros where
	// there is none. unsure are bad pages on nobody's list, which are asked
	// again once per request.
	bad, unsure ranges.Set
	// lost are bytes given up, reinit bytes that are zero on clean media: the
	// ledger's live rows.
	lost, reinit *ranges.Set
	// open are repairs that were written but could not be closed, openPages their
	// pages: nobody may write there until the intents are closed.
	openPages ranges.Set
	open      []*unfinished
}

// loadOwed makes the pages whose image is owed to the medium known as bad.
func (d *damage) loadOwed(j *journal.Journal) error {
	for r := range j.Pages(d.key).All() {
		for off := r.Off; off < r.End(); off += ranges.PageSize {
			im, ok, err := j.Image(d.key, off)
			if err != nil {
				return fmt.Errorf("reading the image of page %v: %w", ranges.Page(off), err)
			}
			if ok && im.Pending {
				d.bad.Add(ranges.Page(off))
			}
		}
	}
	return nil
}

// recheck makes every page unknown again but those that are owed an image.
func (d *damage) recheck(j *journal.Journal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad, d.unsure = ranges.Set{}, ranges.Set{}
	_ = d.loadOwed(j) // what can't be loaded is asked of the medium
}

// concernsRead reports whether a read of r needs more than one pread.
func (d *damage) concernsRead(r ranges.Range) bool {
	r = r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(r) || d.unsure.Overlaps(r) || d.lost.Overlaps(r)
}

// concernsWrite reports whether a write of r needs more than one pwrite.
func (d *damage) concernsWrite(r ranges.Range) bool {
	r = r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(r) || d.unsure.Overlaps(r) || d.lost.Overlaps(r) || d.openPages.Overlaps(r)
}

// isBad reports whether the page is known bad.
func (d *damage) isBad(page ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(page) || d.unsure.Overlaps(page)
}

// nextBad is the first known-bad page that touches r; the zero range if none does.
func (d *damage) nextBad(r ranges.Range) ranges.Range {
	wide := r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	first := ranges.Range{Off: wide.End()}
	for _, s := range []*ranges.Set{&d.bad, &d.unsure} {
		for piece := range s.Within(wide) {
			if piece.Off < first.Off {
				first = ranges.Page(piece.Off)
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
	for r := range d.unsure.All() {
		s.Add(r)
	}
	return s
}

// notLost is the pieces of r that are not recorded as lost.
func (d *damage) notLost(r ranges.Range) []ranges.Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(d.lost.Gaps(r))
}

// lostWithin is the pieces of r that are recorded as lost.
func (d *damage) lostWithin(r ranges.Range) []ranges.Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(d.lost.Within(r))
}

// reinitWithin is the pieces of r that are zero on clean media.
func (d *damage) reinitWithin(r ranges.Range) []ranges.Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(d.reinit.Within(r))
}

// apply follows a change that the ledger took.
func (d *damage) apply(c ledger.Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range c.Lost {
		d.lost.Add(l.Range)
		d.reinit.Remove(l.Range)
	}
	for _, m := range c.Moves {
		live := slices.Concat(slices.Collect(d.lost.Within(m.Range)), slices.Collect(d.reinit.Within(m.Range)))
		d.lost.Remove(m.Range)
		d.reinit.Remove(m.Range)
		if m.To == ledger.Reinitialized {
			for _, r := range live {
				d.reinit.Add(r)
			}
		}
	}
}
