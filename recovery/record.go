package recovery

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
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
		d.recorded()
	}
	for _, p := range bad {
		if f.keepImage(d, p, path) {
			d.learn(p) // otherwise the medium has to be asked again each time
		}
	}
	for lost := range fresh.All() {
		f.emitLost(path, lost, bad, who)
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
	if err != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images.Add(p.whole())
	return true
}

func (f *File) emitLost(path string, lost ranges.Range, bad []*page, who Caller) {
	ev := f.placed(f.eventAt(path, event.Lost, lost, who))
	ev.Action = "zero-filled"
	for _, p := range bad {
		if p.whole().Overlaps(lost) {
			ev.Salvaged += p.salvagedBytes()
			ev.Detected, ev.Granularity, ev.Why = p.cause, p.granularity, p.why
		}
	}
	f.engine.Events.Emit(ev)
}

// recordRead tells that a read was served over bad pages.
func (f *File) recordRead(r *recoveryRead, bad []*page, who Caller) {
	if len(r.known.pages)+len(bad) == 0 {
		return
	}
	ev := f.eventAt(f.recentPath(), event.Recovered, r.want, who)
	ev.Action, ev.Detected = "salvaged", "eio"
	if len(r.known.missing) > 0 {
		ev.Action = "zero-filled"
	}
	ev.Salvaged = r.known.salvaged(r.size)
	for _, p := range bad {
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

// recentPath is the file's name within the last second, for what is told often.
func (f *File) recentPath() string {
	d := f.ino.damage.Load()
	if d == nil {
		return f.path()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.pathAt) > time.Second {
		d.path, d.pathAt = f.path(), time.Now()
	}
	return d.path
}

// event starts an event about a range of the file.
func (f *File) event(kind event.Kind, r ranges.Range, who Caller) event.Event {
	return f.eventAt(f.path(), kind, r, who)
}

func (f *File) eventAt(path string, kind event.Kind, r ranges.Range, who Caller) event.Event {
	ev := event.Event{
		Event: kind, Path: path, FS: f.engine.FS, Offset: r.Off, Length: r.Len,
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

// placed adds where on the device the event's bytes lie, if that is known.
func (f *File) placed(ev event.Event) event.Event {
	device := f.below.Device()
	if device == nil {
		return ev
	}
	if at, ok := device.Place(ev.Offset); ok {
		ev.Device, ev.Sector = at.Device, &at.Sector
	}
	return ev
}

// dropImagesNow is dropImages, and a power cut does not bring them back either. The
// pages will hold something else, and when they are bad again an image from before
// would be merged with it wherever the two can't be compared.
func (f *File) dropImagesNow(d *damage, pages ...ranges.Range) {
	var dropped []ranges.Range
	for _, r := range pages {
		if len(d.imagesWithin(r)) > 0 {
			f.dropImages(d, r)
			dropped = append(dropped, r)
		}
	}
	if len(dropped) == 0 {
		return
	}
	if err := f.engine.Journal.Sync(); err != nil {
		f.emitFailure("journal", dropped[0], err)
	}
}

// dropImages forgets kept images of pages in r.
func (f *File) dropImages(d *damage, r ranges.Range) {
	if len(d.imagesWithin(r)) == 0 {
		return
	}
	d.mu.Lock()
	d.images.Remove(r.Widen(ranges.PageSize))
	d.mu.Unlock()
	if err := f.engine.Journal.DropImages(d.key, r); err != nil {
		f.emitFailure("journal", r, err)
	}
}

// emitFailure tells that a step of a repair failed.
func (f *File) emitFailure(step string, r ranges.Range, err error) {
	f.engine.counters.failedRepairs.Add(1)
	ev := f.placed(f.event(event.RepairFailed, r, Caller{}))
	ev.Action, ev.Error = step, err.Error()
	if at := (*RepairError)(nil); errors.As(err, &at) && at.Step == step && at.Page == r {
		ev.Error = at.Err.Error() // the event says the rest
	}
	ev.Next = nextAfter(step)
	f.engine.Events.Emit(ev)
}

// nextAfter is what to do when a step of a repair failed.
func nextAfter(step string) string {
	switch step {
	case "journal", "ledger":
		return "make room on the disk of the state directory, then write again"
	case "raw":
		return "other files share the page (reflink): copy this one with cp --reflink=never and put the copy in its place"
	case "free":
		return "the device refuses to clear a page that was to be freed: on XFS it stays with its file, since the filesystem would shut down over it; keep the file, and have the device looked after"
	case "write", "punch":
		return "the medium refuses to be cleared: mendfs doctor says what else can clear it; the readable bytes are kept and served"
	case "read-only":
		return "see dmesg for why, make the filesystem writable (mount -o remount,rw), then write again"
	case "share":
		return "write whole pages, or close the file everywhere and write again, or mount with --protect=full"
	}
	return "mendfs lost --pending"
}
