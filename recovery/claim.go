package recovery

import (
	"slices"
	"time"

	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/media"
)

// isFresh reports whether a change to the file now will be told, by its ctime, from
// one that came after the repair.
func isFresh(in *journal.Intent) bool {
	return time.Now().UnixNano() < max(in.Time, in.Punched)+int64(slack)/2
}

// claim says, durably, that the file of the intent is about to be changed now, by us:
// the intent may be older than slack, and if the power goes meanwhile the next replay
// must not take our change for somebody else's. That goes for all pages of the file
// that st, of now, shows to be ours.
func (e *Engine) claim(mine *journal.Intent, st media.Stat) error {
	if isFresh(mine) {
		return nil
	}
	mine.Punched = time.Now().UnixNano()
	if err := e.Journal.Punching(mine.ID, mine.Punched); err != nil {
		return err
	}
	for _, in := range e.Journal.Intents() {
		if in.File.Key() != mine.File.Key() || isFresh(&in) || !isOurs(st, &in) {
			continue
		}
		if err := e.Journal.Punching(in.ID, mine.Punched); err != nil {
			return err
		}
	}
	return nil
}

// claim is Engine.claim for pages of a repair that is finished late, of which nobody
// else can have written, before anything of the file is changed.
func (f *File) claim(mends []*mend) error {
	if !slices.ContainsFunc(mends, func(m *mend) bool { return !isFresh(m.intent) }) {
		return nil
	}
	st, err := f.below.Stat()
	if err != nil {
		return &RepairError{Step: "sync", Page: mends[0].page, Err: err}
	}
	for _, m := range mends {
		if err := f.engine.claim(m.intent, st); err != nil {
			return &RepairError{Step: "journal", Page: m.page, Err: err}
		}
	}
	return nil
}
