package recovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// recordLoss makes newly met bad pages known: the lost bytes are in the ledger
// before anybody is told zeros, the salvaged ones in the journal.
func (f *File) recordLoss(d *damage, bad []*page, who Caller) error {
	if len(bad) == 0 {
		return nil
	}
	fresh, path := ranges.Of(), f.path()
	var change ledger.Change
	for _, p := range bad {
		for m := range p.missing.All() {
			for _, gap := range d.notLost(m) {
				fresh.Add(gap)
				change.Lost = append(change.Lost, ledger.Loss{
					File: d.id, Path: path, Range: gap, Cause: p.cause,
					Source: f.engine.Medium.Source(), Granularity: p.granularity,
				})
			}
		}
	}
	if len(change.Lost) > 0 {
		if err := f.engine.Ledger.Record(change); err != nil {
			return fmt.Errorf("recording loss: %w: %w", err, unix.EIO) // no zero without a record
		}
		d.apply(change)
	}
	for _, p := range bad {
		if f.keepImage(d, p, path) {
			d.learn(p) // otherwise the medium has to be asked again each time
		}
	}
	for lost := range fresh.All() {
		f.emitLost(lost, bad, who)
	}
	f.engine.counters.lostBytes.Add(fresh.Bytes())
	return nil
}

// keepImage saves what was salvaged of a page; it reports whether all that is
// known of the page is kept, so that the medium need not be asked again.
func (f *File) keepImage(d *damage, p *page, path string) bool {
	if p.salvagedBytes() == 0 {
		return true // zeros need no image
	}
	err := f.engine.Journal.SaveImage(d.id, path, journal.Image{
		Page: p.off, Data: slices.Clone(p.data[:]), Missing: p.missing.Slice(),
	})
	return err == nil
}

func (f *File) emitLost(lost ranges.Range, bad []*page, who Caller) {
	ev := f.event(event.Lost, lost, who)
	ev.Action = "zero-filled"
	for _, p := range bad {
		if p.whole().Overlaps(lost) {
			ev.Salvaged += p.salvagedBytes()
			ev.Detected = p.cause
		}
	}
	f.engine.Events.Emit(ev)
}

// recordRead tells that a read was served over bad pages.
func (f *File) recordRead(want ranges.Range, pages []*page, who Caller) {
	if len(pages) == 0 {
		return
	}
	ev := f.event(event.Recovered, want, who)
	ev.Action = "salvaged"
	for _, p := range pages {
		ev.Salvaged += p.salvagedBytes()
		ev.Detected = p.cause
		if !p.missing.Empty() {
			ev.Action = "zero-filled"
		}
	}
	f.engine.counters.recoveredReads.Add(1)
	f.engine.counters.salvagedBytes.Add(ev.Salvaged)
	f.engine.Events.Emit(ev)
}

// event starts an event about a range of the file.
func (f *File) event(kind event.Kind, r ranges.Range, who Caller) event.Event {
	ev := event.Event{
		Event: kind, Path: f.path(), FS: f.engine.FS, Offset: r.Off, Length: r.Len,
		Source: f.engine.Medium.Source(), Pid: who.Pid,
	}
	if who.Known {
		uid := who.UID
		ev.UID = &uid
	}
	var st unix.Stat_t
	if unix.Fstat(f.below.Fd(), &st) == nil {
		ev.Ino = st.Ino
		ev.Dev = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	}
	return ev
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

// lostXattr is the value of user.mendfs.lost, schema version 1.
type lostXattr struct {
	Version   int          `json:"version"`
	Lost      []xattrRange `json:"lost"`
	Truncated bool         `json:"truncated,omitempty"`
}

type xattrRange struct {
	ranges.Range
	State ledger.State `json:"state"`
}

// maxXattr bounds the value of user.mendfs.lost.
const maxXattr = 32 << 10

// LostXattr is the value of the extended attribute user.mendfs.lost: JSON, at
// most 32 KiB, then "truncated" is set. ok is false where nothing is lost.
func (i *Inode) LostXattr() (value []byte, ok bool) {
	d := i.damage.Load()
	if d == nil {
		return nil, false
	}
	d.mu.Lock()
	var rows []xattrRange
	for r := range d.lost.All() {
		rows = append(rows, xattrRange{r, ledger.Lost})
	}
	for r := range d.reinit.All() {
		rows = append(rows, xattrRange{r, ledger.Reinitialized})
	}
	d.mu.Unlock()
	if len(rows) == 0 {
		return nil, false
	}
	slices.SortFunc(rows, func(a, b xattrRange) int { return int(a.Off - b.Off) })
	out := lostXattr{Version: 1, Lost: rows}
	const row = 100 // bytes of JSON that a row takes at most
	if len(rows) > maxXattr/row {
		out.Lost, out.Truncated = rows[:maxXattr/row], true
	}
	value, err := json.Marshal(out)
	return value, err == nil
}

// dropImages forgets kept images of pages in r.
func (f *File) dropImages(d *damage, r ranges.Range) {
	if f.engine.Journal.Pages(d.key).Overlaps(r) {
		err := f.engine.Journal.DropImages(d.key, r)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			f.emitFailure("journal", r, err)
		}
	}
}

// emitFailure tells that a step of a repair failed.
func (f *File) emitFailure(step string, r ranges.Range, err error) {
	f.engine.counters.failedRepairs.Add(1)
	ev := f.event(event.RepairFailed, r, Caller{})
	ev.Action, ev.Error = step, err.Error()
	ev.Next = nextAfter(step)
	f.engine.Events.Emit(ev)
}

// nextAfter is what to do when a step of a repair failed.
func nextAfter(step string) string {
	switch step {
	case "journal", "ledger":
		return "make room on the disk of the state directory, then write again"
	case "write", "punch":
		return "the medium refuses to be cleared: mendfs doctor says what else can clear it; the readable bytes are kept and served"
	}
	return "mendfs lost --pending"
}
