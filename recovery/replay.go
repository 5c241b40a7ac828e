package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
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
// the images. An error (of one repair: *ReplayError) means that the backing
// filesystem or the state disk is in trouble; intents stay open then, and the mount
// must not go on.
func (e *Engine) Replay() error {
	if err := e.reviewImages(); err != nil {
		return err
	}
	for _, in := range e.Journal.Intents() {
		if in.Punched = e.Journal.PunchedAt(in.ID); e.Ledger.Closed(in.ID) { // the replay of another page may have claimed it
			if err := e.Journal.Close(in.ID); err != nil {
				return fmt.Errorf("closing intent %d: %w", in.ID, err)
			}
			continue
		}
		if err := e.replay(&in); err != nil {
			return &ReplayError{Path: in.Path, Range: in.Range, StateDisk: e.stateFails(err), Err: err}
		}
	}
	if err := e.Sweep(); err != nil {
		return err
	}
	e.at.Hit(failpoint.ReplayEnds)
	if err := e.checkpoint(); !errors.Is(err, journal.ErrFull) {
		return err
	}
	return nil // reads can go on, and no repair is begun before there is room
}

// replay brings one intent to its end.
func (e *Engine) replay(in *journal.Intent) error {
	e.at.Hit(failpoint.ReplayBegins)
	flags := unix.O_RDWR
	if e.ReadOnly {
		flags = unix.O_RDONLY
	}
	fd, err := fileid.Open(e.Root, in.File, in.Path, flags)
	if errors.Is(err, fileid.ErrGone) {
		return e.notFound(in)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	file := e.Open(e.NewInode(fd), fd)
	stat, err := file.below.Stat()
	if err != nil {
		return err
	}
	rp := newReplay(e, in, file, stat)
	if in.Image == nil {
		return rp.withoutImage()
	}
	return rp.withImage()
}

// notFound ends an intent whose file is not to be found. Without file handles it
// may only have another name: then the image is all that there is of the page.
func (e *Engine) notFound(in *journal.Intent) error {
	if in.Image == nil || fileid.Gone(e.Root, in.File, in.Path) {
		return e.settled(nil, in, "file-gone", nil)
	}
	if err := e.Journal.Keep(in); err != nil {
		return err
	}
	return e.settled(nil, in, "conflict", nil)
}

// replay is the look at one intent.
type replay struct {
	engine *Engine
	in     *journal.Intent
	file   *File
	stat   media.Stat
	ours   bool   // the file has not been changed since the repair, or the replay that crashed
	page   []byte // what is on the media now, clipped to the size; nil: it can't be read
}

func newReplay(e *Engine, in *journal.Intent, f *File, st media.Stat) *replay {
	return &replay{engine: e, in: in, file: f, stat: st, ours: isOurs(st, in)}
}

func isOurs(st media.Stat, in *journal.Intent) bool {
	return st.Ctime <= max(in.Time, in.Punched)+int64(slack)
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
		e.at.Hit(failpoint.ReplayRestored)
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
		if e.ReadOnly {
			return nil
		}
		if err := rp.cutBack(); err != nil {
			return err
		}
		return e.settled(rp.file, in, "newer-data-kept", rp.movesUnderNewer())
	}
	if !e.ReadOnly {
		if err := rp.cutBack(); err != nil {
			return err
		}
	}
	return rp.keep()
}

// keep ends the replay of a conflict. Keeping the image closes the intent, so that
// all that a later replay would do has to be durable before.
func (rp *replay) keep() error {
	e, in := rp.engine, rp.in
	if err := e.syncFound(rp.file); err != nil {
		return err
	}
	if err := e.Ledger.Commit(ledger.Change{Lost: e.losses(in), Moves: rp.movesUnderNewer()}); err != nil {
		return err
	}
	if err := e.Journal.Keep(in); err != nil {
		return err
	}
	e.at.Hit(failpoint.ReplayKept)
	return e.settled(rp.file, in, "conflict", nil)
}

// look compares the page with the intent (design, replay).
func (rp *replay) look() (outcome, error) {
	in, below := rp.in, rp.file.below
	inFile := in.Range.Intersect(ranges.Between(0, rp.stat.Size))
	if inFile.Empty() {
		return beyond, nil
	}
	isHole, err := below.IsHole(in.Range)
	if err != nil {
		return 0, err
	}
	if isHole && in.Punched != 0 && rp.ours {
		return ourHole, nil
	}
	if isHole && in.Punched != 0 { // ours, perhaps: the image is all that there is of the page
		rp.page = make([]byte, inFile.Len)
		return conflict, nil
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
		rp.page = nil
		return unreadable, rp.certain(inFile)
	}
	switch {
	case bytes.Equal(rp.page, in.Image[:len(rp.page)]):
		return equal, nil
	case in.Punched != 0 && in.Ctime == rp.stat.Ctime:
		return torn, nil // cleared on the device, and nobody has written the file since (Zeroing)
	case in.Boot == rp.engine.boot && in.Punched != 0:
		return conflict, nil // written into our hole, perhaps: the image is all that there is of the rest
	case in.Boot == rp.engine.boot:
		return newer, nil
	case rp.ours:
		return torn, nil
	}
	return conflict, nil
}

// zeroBehind reports whether the page is zero behind the end that the file should have.
func (rp *replay) zeroBehind() bool {
	return rp.page != nil && isZero(rp.page[min(len(rp.page), int(max(0, rp.in.End-rp.in.Range.Off))):])
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

func (rp *replay) claim() error { return rp.engine.claim(rp.in, rp.stat) }

// rewrite writes the image, by the ladder.
func (rp *replay) rewrite() error {
	in := rp.in
	if err := rp.claim(); err != nil {
		return err
	}
	d, err := rp.file.know()
	if err != nil {
		return err
	}
	m := &mend{page: in.Range, content: in.Image, intent: in}
	r := &repair{file: rp.file, damage: d, size: rp.stat.Size, end: in.End, mends: []*mend{m}}
	if err := r.clear(m); err != nil {
		return err
	}
	rp.engine.at.Hit(failpoint.ReplayWritten)
	return rp.restore()
}

// restore gives the file the size and time that the repair would have left, and
// makes it durable.
func (rp *replay) restore() error {
	in := rp.in
	if err := rp.claim(); err != nil { // the ctime changes
		return err
	}
	size := max(in.End, rp.stat.Size)
	if rp.stat.Size == in.Range.End() && (rp.ours || rp.zeroBehind()) {
		size = in.End // the crash came before the truncate back
	}
	if err := rp.file.shrink(in.Range.End(), size); err != nil {
		return err
	}
	// A later mtime may be that of an application's write since.
	if in.RestoreMtime && rp.stat.Mtime == in.Mtime {
		if err := rp.file.below.SetMtime(in.Mtime); err != nil {
			return err
		}
	}
	return rp.file.below.Sync(false)
}

// moves is what the finished repair does to the ledger.
func (rp *replay) moves() []ledger.Move {
	var moves []ledger.Move
	for _, r := range rp.in.Overwritten {
		moves = append(moves, rp.move(r, ledger.Overwritten))
	}
	for _, r := range rp.in.Missing {
		moves = append(moves, rp.move(r, ledger.Reinitialized))
	}
	return moves
}

// movesUnderNewer is the same where somebody wrote on the repaired page since:
// what is zero of the missing bytes is still ours.
func (rp *replay) movesUnderNewer() []ledger.Move {
	moves := rp.moves()
	inFile := ranges.Range{Off: rp.in.Range.Off, Len: int64(len(rp.page))}
	for _, missing := range rp.in.Missing {
		missing = missing.Intersect(inFile)
		for _, r := range nonZero(rp.page[missing.Off-inFile.Off:missing.End()-inFile.Off], missing.Off) {
			moves = append(moves, rp.move(r, ledger.Overwritten))
		}
	}
	return moves
}

func (rp *replay) move(r ranges.Range, to ledger.State) ledger.Move {
	return ledger.Move{File: rp.in.File, Path: rp.in.Path, Range: r, To: to}
}

// cutBack takes back what the repair of the tail page added to the file, unless
// somebody wrote there.
func (rp *replay) cutBack() error {
	in := rp.in
	if rp.stat.Size != in.Range.End() || in.End >= rp.stat.Size || !isZero(rp.page[max(0, in.End-in.Range.Off):]) {
		return nil
	}
	return rp.file.shrink(in.Range.End(), in.End)
}

// syncFound makes durable what replay has found: it may be in the kernel's memory only.
// Without the intent a power cut would leave what the memory held between clear and copy.
func (e *Engine) syncFound(f *File) error {
	if f == nil || e.ReadOnly {
		return nil
	}
	return f.below.Sync(false)
}

// settled closes an intent, in one durable step with what it did to the ledger.
func (e *Engine) settled(f *File, in *journal.Intent, action string, moves []ledger.Move) error {
	var losses []ledger.Loss
	if moves != nil {
		losses = e.losses(in)
	}
	if err := e.syncFound(f); err != nil {
		return err
	}
	for _, r := range outlived(f, in, action, moves) {
		if err := e.dropOutlived(in.File, r); err != nil {
			return err
		}
	}
	if err := e.Ledger.Commit(ledger.Change{Lost: losses, Moves: moves, Close: []uint64{in.ID}}); err != nil {
		return err
	}
	e.at.Hit(failpoint.ReplaySettled)
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
