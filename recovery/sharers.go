package recovery

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/locate"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// What a page loses that is zeroed on the device, all lose who share it: the others,
// too, are told zeros only with a record (P5). Their inodes are not locked, since two
// files may be repaired at once that share with each other; what they do meanwhile
// finds the record, and finds the bytes lost or zero.

// sharer is a piece of a file that lies on bytes of the device which another file's
// repair zeroes.
type sharer struct {
	id   fileid.ID
	path string
	lost ranges.Range // of the file; empty behind its end

	in, on ranges.Range // where it was found: of the file, and of the device
}

func (s sharer) String() string {
	name := s.path
	if !utf8.ValidString(name) {
		name = s.id.String()
	}
	return fmt.Sprintf("%s %v", name, s.lost)
}

// sharersPatience is how long a writer may have to wait until it is known who shares a
// page. Where the filesystem does not say, all files are asked.
const sharersPatience = 10 * time.Second

// errUnknownSharers says that nothing may be zeroed, since nobody could be told.
var errUnknownSharers = errors.New("it can't be found out which other files share the page, and they would lose the same bytes without a record")

// findSharers is who else has what the doomed bytes of the device hold of the page.
// A filesystem without a map of owners can't name a file that lies outside of the
// root, or has no name any more: those it misses, unless they are the only ones.
func (r *repair) findSharers(page ranges.Range, doomed *ranges.Set) ([]sharer, error) {
	found, err := r.located(doomed)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUnknownSharers, err)
	case found.Skipped > 0:
		return nil, fmt.Errorf("%w: %w", errUnknownSharers, found.Why)
	}
	var out []sharer
	others := false
	for _, p := range found.Places {
		for on := range doomed.Within(p.Device) {
			if p.Kind != pmem.File {
				return nil, fmt.Errorf("%w: one has no name below the mounted directory", errUnknownSharers)
			}
			in := on.Shift(p.Off - p.Device.Off)
			if p.File.Key() == r.damage.key && page.Contains(in) {
				continue
			}
			s, still, err := r.file.engine.sharerAt(p, in, on)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errUnknownSharers, err)
			}
			others = others || still
			if still && !s.lost.Empty() {
				out = append(out, s)
			}
		}
	}
	if !others {
		return nil, fmt.Errorf("%w: none was found below the mounted directory", errUnknownSharers)
	}
	return out, nil
}

// located is what the bytes that are listed now, the doomed among them, are used for.
// All pages of a repair are looked for at once.
func (r *repair) located(doomed *ranges.Set) (*locate.Found, error) {
	known := r.found != nil
	for d := range doomed.All() {
		known = known && r.sought.Contains(d)
	}
	if known {
		return r.found, nil
	}
	seek, err := r.file.below.Device().Bad()
	if err != nil {
		return nil, err
	}
	for d := range doomed.All() {
		seek.Add(d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.file.engine.patience)
	defer cancel()
	found, err := locate.Find(ctx, r.file.engine.Root, seek, 1)
	if err != nil {
		return nil, fmt.Errorf("looking through the files: %w", err)
	}
	r.found, r.sought = found, seek
	return found, nil
}

// sharerAt asks the file whether it still lies there. It fails if more is kept of the
// bytes than zeros: once the page can be read again, that would be given up (P4).
func (e *Engine) sharerAt(p locate.Place, in, on ranges.Range) (s sharer, still bool, err error) {
	s = sharer{id: p.File, path: p.Path, in: in, on: on}
	size, still, err := e.lies(s)
	if err != nil || !still {
		return s, false, err
	}
	s.lost = in.Intersect(ranges.Between(0, size))
	im, kept, err := e.Journal.Image(p.File.Key(), ranges.Page(in.Off).Off)
	if err == nil && kept && !s.lost.Empty() && !ranges.Of(im.Missing...).Contains(s.lost) {
		err = fmt.Errorf("%s has bytes there that are kept, and nowhere else", s)
	}
	return s, true, err
}

// lies reports whether the sharer still lies where it was found, and its size.
func (e *Engine) lies(s sharer) (size int64, still bool, err error) {
	fd, err := fileid.Open(e.Root, s.id, s.path, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, fileid.ErrGone) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false, err
	}
	extents, err := pmem.Extents(fd, s.in)
	if err != nil {
		return 0, false, err
	}
	return st.Size, len(extents) == 1 && extents[0].On() == s.on && extents[0].Usable(), nil
}

// recordSharers records what the sharers are about to lose, durably, and tells of it.
func (r *repair) recordSharers(sharers []sharer) error {
	e := r.file.engine
	var all ledger.Change
	fresh := make([][]ranges.Range, len(sharers)) // not told of yet
	for i, s := range sharers {
		lost, _, err := e.Ledger.Live(s.id.Key())
		if err != nil {
			return fmt.Errorf("asking the ledger: %w", err)
		}
		for gap := range lost.Gaps(s.lost) {
			fresh[i] = append(fresh[i], gap)
		}
		all.Lost = append(all.Lost, e.lossOf(s).Lost...)
	}
	if err := e.Ledger.Commit(all); err != nil {
		return fmt.Errorf("recording what the sharers lose: %w", err)
	}
	for i, s := range sharers {
		e.follow(s, e.lossOf(s))
		for _, lost := range fresh[i] {
			e.counters.lostBytes.Add(lost.Len)
			ev := e.sharerEvent(event.Lost, s, lost)
			ev.Detected, ev.Granularity = "badblocks", ranges.SectorSize
			ev.Action = "shared with " + r.file.path() + ", which is being repaired"
			ev.Next = "put it back from a copy"
			e.Events.Emit(ev)
		}
	}
	return nil
}

func (e *Engine) lossOf(s sharer) ledger.Change {
	return ledger.Change{Lost: []ledger.Loss{{
		File: s.id, Path: s.path, Range: s.lost, Cause: "badblocks",
		Source: e.Medium.Source(), Granularity: ranges.SectorSize,
	}}}
}

// sharersZeroed records that what the sharers lost is zero on clean media now. Where
// it can't be recorded, or the process ends before, the next read of them does it; so it
// is with those that lie elsewhere by now, with new data perhaps.
func (r *repair) sharersZeroed(sharers []sharer) {
	e := r.file.engine
	for _, s := range sharers {
		if _, still, err := e.lies(s); err != nil || !still {
			continue
		}
		moved := ledger.Change{Moves: []ledger.Move{{File: s.id, Path: s.path, Range: s.lost, To: ledger.Reinitialized}}}
		if err := e.Ledger.Record(moved); err != nil {
			r.file.emitFailure("ledger", s.lost, err)
			continue
		}
		e.follow(s, moved)
		ev := e.sharerEvent(event.Reinitialized, s, s.lost)
		ev.Action = "raw-zeroed"
		e.Events.Emit(ev)
	}
}

// follow lets the sharer's inode, if it has one, know of a change that the ledger took,
// and ask its page again.
func (e *Engine) follow(s sharer, c ledger.Change) {
	if e.inUse == nil {
		return
	}
	live := e.inUse(s.id)
	if live == nil {
		return
	}
	d, err := live.know(s.id)
	if err != nil {
		return // whoever uses the file next asks the ledger, and fails if that does
	}
	d.recorded()
	if len(c.Moves) > 0 {
		d.noteChanged(s.lost)
		d.doubt(ranges.Of(ranges.Page(s.lost.Off)), ranges.Of(), e.Journal.PendingPages(d.key))
	}
}

func (e *Engine) sharerEvent(kind event.Kind, s sharer, r ranges.Range) event.Event {
	return event.Event{
		Event: kind, Path: s.path, FS: e.FS, Ino: s.id.Ino, Offset: r.Off, Length: r.Len, Source: e.Medium.Source(),
	}
}

// InUse says how to find the Inode of a file; find returns nil if nobody uses it. It
// is called with inodes locked, and must not wait for any. It has to be set before
// the first I/O.
func (e *Engine) InUse(find func(fileid.ID) *Inode) { e.inUse = find }
