package recovery

import (
	"fmt"
	"slices"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Listed is the pieces of a file that whoever keeps a list of media errors names.
// There may be very many: nobody changes the slices, so that all may share them.
type Listed struct {
	Pieces []ranges.Range
	On     []OnDevice // where each of them lies; nil if there is no device to name
}

// OnDevice is a piece of the device of a filesystem.
type OnDevice struct {
	ranges.Range
	Device string // as /dev/pmem0
	Sector int64  // of the disk
}

// Equal reports whether both name the same pieces.
func (l Listed) Equal(o Listed) bool {
	return slices.Equal(l.Pieces, o.Pieces) && slices.Equal(l.On, o.On)
}

// Detected takes note that the list of media errors names these pieces of the
// file id, all there are now, before anybody reads them. Those that are new are
// told, those of a page in one event; nothing is read, given up or repaired. From
// then on the file is Damaged, reads ask its listed pages one by one, and writes of
// them are repairs; what the list has wrong is found out then, and when a later
// call has it no more.
//
// live is the file's Inode; nil if nobody uses it. One that is made later knows by
// itself. Calls for the same file must not overlap.
func (e *Engine) Detected(id fileid.ID, path string, live *Inode, list Listed) (err error) {
	now := list.Pieces
	was := e.list(id.Key(), now)
	defer func() {
		if err != nil {
			e.list(id.Key(), was) // so that it is still new when it is tried again
		}
	}()
	if err := e.tellDetected(id, path, was, list); err != nil {
		return err
	}
	if live == nil {
		return nil
	}
	live.mu.RLock()
	defer live.mu.RUnlock()
	d, err := live.know(id)
	if err != nil {
		return err
	}
	d.suspect(inPages(now))
	d.doubt(inPages(was), inPages(now), e.Journal.PendingPages(id.Key()))
	return nil
}

// inPages is all pages that the pieces touch.
func inPages(pieces []ranges.Range) *ranges.Set {
	pages, last := ranges.Of(), ranges.Range{}
	for _, r := range pieces {
		if wide := r.Widen(ranges.PageSize); wide != last { // most often many lie in one
			pages.Add(wide)
			last = wide
		}
	}
	return pages
}

// list sets what is listed of a file, and returns what was.
func (e *Engine) list(key string, now []ranges.Range) (was []ranges.Range) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was = e.listed[key]
	delete(e.listed, key)
	if len(now) > 0 {
		e.listed[key] = now
	}
	e.lists.Store(int64(len(e.listed)))
	return was
}

// listedPages is the pages of a file that are listed.
func (e *Engine) listedPages(key string) *ranges.Set {
	e.mu.Lock()
	pieces := e.listed[key]
	e.mu.Unlock()
	return inPages(pieces) // nobody changes them
}

// tellDetected tells of the pieces that were not listed before and of which
// nothing is recorded as lost: that was told when it was read.
func (e *Engine) tellDetected(id fileid.ID, path string, was []ranges.Range, list Listed) error {
	lost, _, err := e.Ledger.Live(id.Key())
	if err != nil {
		return fmt.Errorf("asking the ledger: %w", err)
	}
	told := ranges.Of(was...)
	var ev event.Event // of the pieces in page
	var page ranges.Range
	for i, piece := range list.Pieces {
		switch {
		case told.Contains(piece) || lost.Overlaps(piece):
			continue
		case page.Contains(piece) && piece.Off > ev.Offset:
			ev.Length = max(ev.Length, piece.End()-ev.Offset)
			continue
		case ev.Length > 0:
			e.Events.Emit(ev)
		}
		page = ranges.Page(piece.Off)
		ev = event.Event{
			Event: event.Detected, Path: path, FS: e.FS, Ino: id.Ino, Offset: piece.Off, Length: piece.Len,
			Source: e.Medium.Source(), Detected: "badblocks", Next: "overwrite it, or put the file back from a copy",
		}
		if list.On != nil {
			ev.Device, ev.Sector = list.On[i].Device, &list.On[i].Sector
		}
	}
	if ev.Length > 0 {
		e.Events.Emit(ev)
	}
	return nil
}

// suspect sets the pages that are listed, and that nobody has met yet.
func (d *damage) suspect(pages *ranges.Set) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.suspected = *ranges.Of(pages.Slice()...)
	for _, met := range []*ranges.Set{&d.bad, &d.unsure} {
		for r := range met.All() {
			d.suspected.Remove(r)
		}
	}
}

// doubt has the bad pages asked again that were listed and are not any more,
// except those that are owed an image.
func (d *damage) doubt(was, now, owed *ranges.Set) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for listed := range was.All() {
		for gone := range now.Gaps(listed) {
			for free := range owed.Gaps(gone) {
				d.bad.Remove(free)
				d.unsure.Remove(free)
			}
		}
	}
}

// isSuspected reports whether the page is listed, and was not met yet.
func (d *damage) isSuspected(page ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.suspected.Overlaps(page)
}

// acquit makes a page unknown that was read, whatever came of it.
func (d *damage) acquit(page ranges.Range) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.suspected.Remove(page)
}

// askSuspected reads neighbouring pages that are listed one by one: each of them
// would fail a read of more (see fetch).
func (r *recoveryRead) askSuspected(run ranges.Range) error {
	for at := ranges.Page(run.Off); at.Off < run.End(); at = at.Shift(ranges.PageSize) {
		part := at.Intersect(r.want)
		if err := r.fetchAround(part); err != nil {
			return err
		}
		failed := slices.ContainsFunc(r.suspects, func(p *page) bool { return p.off == at.Off })
		if !failed && part == at.Intersect(ranges.Between(0, r.size)) {
			r.well = append(r.well, at)
		}
	}
	return nil
}
