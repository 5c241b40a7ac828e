package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// slack is how far a file's ctime may lie behind the intent and still be the
// repair's own.
const slack = time.Minute

// Replay finishes the repairs that a crash left open, before anything is
// served. It never writes over newer data, it may crash itself at any instant,
// and on a read-only mount it writes nothing: unreadable pages are served from
// the images. An error means that the backing filesystem is in trouble; intents
// stay open then, and the mount must not go on.
func (e *Engine) Replay() error {
	if err := e.reviewImages(); err != nil {
		return err
	}
	for _, in := range e.Journal.Intents() {
		if e.Ledger.Closed(in.ID) {
			if err := e.Journal.Close(in.ID); err != nil {
				return fmt.Errorf("closing intent %d: %w", in.ID, err)
			}
			continue
		}
		if err := e.replay(&in); err != nil {
			return fmt.Errorf("finishing the repair of %q %v that a crash left open: %w; nothing was lost: mount again when the backing filesystem works", in.Path, in.Range, err)
		}
	}
	if err := e.Sweep(); err != nil {
		return err
	}
	return e.checkpoint()
}

// replay brings one intent to its end.
func (e *Engine) replay(in *journal.Intent) error {
	flags := unix.O_RDWR
	if e.ReadOnly {
		flags = unix.O_RDONLY
	}
	fd, err := fileid.Open(e.Root, in.File, in.Path, flags)
	if errors.Is(err, fileid.ErrGone) {
		return e.settled(nil, in, "file-gone", nil)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rp := &replay{engine: e, in: in, file: e.Open(e.NewInode(fd), fd)}
	if rp.stat, err = rp.file.below.Stat(); err != nil {
		return err
	}
	if in.Image == nil {
		return rp.withoutImage()
	}
	return rp.withImage()
}

// replay is the look at one intent.
type replay struct {
	engine *Engine
	in     *journal.Intent
	file   *File
	stat   media.Stat
	page   []byte // what is on the media now, clipped to the size
}

// outcome is what replay finds of a page.
type outcome int

const (
	beyond     outcome = iota // behind the end of the file: cut off since
	hole                      // freed since
	ourHole                   // freed by our own punch
	unreadable                // still poisoned
	equal                     // the write was done
	newer                     // written since
	torn                      // the power went between clear and write
	conflict                  // neither ours nor provably newer
)

// withImage decides what became of the page, and does the rest.
func (rp *replay) withImage() error {
	found, err := rp.look()
	if err != nil {
		return err
	}
	e, in := rp.engine, rp.in
	switch found {
	case unreadable, torn, ourHole:
		if e.ReadOnly {
			return e.serveFromImage(in)
		}
		var refused *RepairError
		if err := rp.rewrite(); errors.As(err, &refused) {
			return rp.owe(refused)
		} else if err != nil {
			return err
		}
		return e.settled(rp.file, in, "page-written", rp.moves())
	case equal:
		if e.ReadOnly {
			return nil // the size may still have to be restored
		}
		if err := rp.restore(); err != nil {
			return err
		}
		return e.settled(rp.file, in, "was-written", rp.moves())
	case beyond:
		return e.settled(rp.file, in, "beyond-the-end", nil)
	case hole:
		return e.settled(rp.file, in, "freed-since", nil)
	case newer:
		return e.settled(rp.file, in, "newer-data-kept", nil)
	}
	if err := e.Journal.Keep(in); err != nil {
		return err
	}
	return e.settled(rp.file, in, "conflict", nil)
}

// look compares the page with the intent (design, replay).
func (rp *replay) look() (outcome, error) {
	in, below := rp.in, rp.file.below
	inFile := in.Range.Intersect(ranges.Between(0, rp.stat.Size))
	if inFile.Empty() {
		return beyond, nil
	}
	ours := rp.stat.Ctime <= max(in.Time, in.Punched)+int64(slack)
	isHole, err := below.IsHole(in.Range)
	if err != nil {
		return 0, err
	}
	if isHole && in.Punched != 0 && ours {
		return ourHole, nil
	}
	if isHole {
		return hole, nil
	}
	rp.page = make([]byte, inFile.Len)
	n, err := below.Pread(rp.page, inFile.Off)
	if err != nil && !mayBePoison(err) {
		return 0, err
	}
	if err != nil || n < len(rp.page) {
		return unreadable, rp.certain(inFile)
	}
	switch {
	case bytes.Equal(rp.page, in.Image[:len(rp.page)]):
		return equal, nil
	case in.Boot == rp.engine.boot:
		return newer, nil
	case ours:
		return torn, nil
	}
	return conflict, nil
}

// certain makes sure that an unreadable page is no outage.
func (rp *replay) certain(r ranges.Range) error {
	if rp.file.below.Corroborate(r) == media.Listed {
		return nil
	}
	if err := rp.file.below.Control(ranges.Of(rp.in.Range)); err != nil {
		return &OutageError{Range: r, Err: fmt.Errorf("%w (control read: %v)", unix.EIO, err)}
	}
	return nil
}

// rewrite writes the image, by the ladder.
func (rp *replay) rewrite() error {
	in := rp.in
	d, err := rp.file.know()
	if err != nil {
		return err
	}
	m := &mend{page: in.Range, content: in.Image, intent: in}
	r := &repair{file: rp.file, damage: d, size: rp.stat.Size, end: in.End, mends: []*mend{m}}
	if err := r.clear(m); err != nil {
		return err
	}
	return rp.restore()
}

// restore gives the file the size and time that the repair would have left, and
// makes it durable.
func (rp *replay) restore() error {
	in := rp.in
	size := max(in.End, rp.stat.Size)
	if rp.stat.Size == in.Range.End() && rp.stat.Ctime <= in.Time+int64(slack) {
		size = in.End // the crash came before the truncate back
	}
	if err := rp.file.shrink(in.Range.End(), size); err != nil {
		return err
	}
	if in.RestoreMtime {
		if err := rp.file.below.SetMtime(in.Mtime); err != nil {
			return err
		}
	}
	return rp.file.below.Sync(false)
}

// withoutImage ends a repair in which the application wrote whole pages: its
// write never returned, so either state of a page is right, and there is
// nothing to write. Pages that are still bad stay lost.
func (rp *replay) withoutImage() error {
	if rp.engine.ReadOnly {
		return nil
	}
	if rp.stat.Size == rp.in.Range.End() && rp.in.End < rp.stat.Size {
		if err := rp.restore(); err != nil {
			return err
		}
	}
	return rp.engine.settled(rp.file, rp.in, "whole-pages", nil)
}

// moves is what the finished repair does to the ledger.
func (rp *replay) moves() []ledger.Move {
	var moves []ledger.Move
	add := func(rs []ranges.Range, to ledger.State) {
		for _, r := range rs {
			moves = append(moves, ledger.Move{File: rp.in.File, Path: rp.in.Path, Range: r, To: to})
		}
	}
	add(rp.in.Overwritten, ledger.Overwritten)
	add(rp.in.Missing, ledger.Reinitialized)
	return moves
}

// settled closes an intent, in one durable step with what it did to the ledger.
func (e *Engine) settled(f *File, in *journal.Intent, action string, moves []ledger.Move) error {
	var losses []ledger.Loss
	if moves != nil {
		losses = e.losses(in)
	}
	if err := e.Ledger.Commit(ledger.Change{Lost: losses, Moves: moves, Close: []uint64{in.ID}}); err != nil {
		return err
	}
	if in.Image != nil { // the page is no longer bad, or no longer the file's
		if err := e.Journal.DropImages(in.File.Key(), in.Range); err != nil {
			return err
		}
	}
	if err := e.closed([]uint64{in.ID}); err != nil {
		return err
	}
	e.counters.replayed.Add(1)
	ev := event.Event{Event: event.Replayed, Path: in.Path, FS: e.FS, Ino: in.File.Ino, Offset: in.Range.Off, Length: in.Range.Len, Action: action}
	if f != nil {
		ev = f.event(event.Replayed, in.Range, Caller{})
		ev.Action = action
	}
	if action == "conflict" {
		ev.Event = event.Conflict
		ev.Next = "mendfs lost --pending"
	}
	e.Events.Emit(ev)
	return nil
}
