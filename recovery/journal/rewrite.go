package journal

import (
	"errors"
	"fmt"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
)

// Checkpoint makes all closes durable, compacts the journal if that is worth
// its while, and returns the ids of closed intents that it has not returned
// before: the ledger may forget them. An id may come again after a restart.
// The other calls go on while it compacts.
func (j *Journal) Checkpoint() ([]uint64, error) {
	j.checkpoint.Lock()
	defer j.checkpoint.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mend(); err != nil {
		return nil, err
	}
	n := len(j.state.closed) // those closed during the fdatasync come behind
	if err := j.syncTo(j.seq); err != nil {
		return nil, err
	}
	if g := j.garbage(); g > j.compactAt && g > j.tail/2 {
		if err := j.compact(); err != nil {
			return nil, fmt.Errorf("journal %s: compacting: %w", j.path, err)
		}
	}
	j.index.Lock()
	defer j.index.Unlock()
	ids := j.state.closed[:n:n]
	j.state.closed = j.state.closed[n:]
	return ids, nil
}

// rewrite writes what is live to a fresh file, which becomes the journal. After
// an error the journal is as it was, except that it is broken if the fresh file
// may have taken its name.
func (j *Journal) rewrite() error {
	j.settle()
	w, err := j.fresh(j.seq + 1)
	if err != nil {
		return fmt.Errorf("writing a fresh file: %w", diskError(err))
	}
	return j.replace(w, w.copy(j.live()))
}

// compact is rewrite for a journal that is in order. It gives up the lock while
// it copies what is live, and then what was appended meanwhile, so that all
// that waits is for the last of that.
func (j *Journal) compact() error {
	j.settle()
	live, at := j.live(), j.tail
	w, err := j.fresh(j.seq + seqGap)
	if err != nil {
		return fmt.Errorf("writing a fresh file: %w", diskError(err))
	}
	j.compacting = true
	j.mu.Unlock()
	err = w.copy(live)
	for range 8 { // against those who append faster than this copies
		j.mu.Lock()
		end := j.tail
		j.mu.Unlock()
		if err != nil || end-at < chunk {
			break
		}
		at, err = end, w.follow(at, end)
	}
	if err == nil {
		err = w.file.Datasync() // while nobody waits for it
	}
	j.mu.Lock()
	for j.syncing {
		j.cond.Wait()
	}
	j.compacting = false
	j.cond.Broadcast()
	switch {
	case err != nil:
	case j.over != nil:
		err = j.over
	case j.broken != nil: // memory may be ahead of the file
		err = j.broken
	case j.sealed && at < j.tail:
		err = ErrClosed
	default:
		err = w.follow(at, j.tail)
	}
	return j.replace(w, err)
}

// replace makes the fresh file the journal, unless there was an error with it.
func (j *Journal) replace(w *freshFile, err error) error {
	if err == nil {
		err = w.finish(j.state.next)
	}
	if err != nil {
		err = errors.Join(err, w.file.Close(), j.disk.Remove(j.path+".new"))
		return fmt.Errorf("writing a fresh file: %w", diskError(err))
	}
	j.at.Hit(failpoint.JournalFresh)
	if len(w.unread) > 0 {
		if err := j.keepOld(w); err != nil {
			return err
		}
	}
	if err := j.disk.Rename(j.path+".new", j.path); err != nil {
		_ = w.file.Close() // nothing in it is needed
		err = fmt.Errorf("renaming the fresh file: %w", diskError(err))
		j.fail(err)
		return err
	}
	j.at.Hit(failpoint.JournalReplaced)
	j.index.Lock()
	defer j.index.Unlock()
	if j.file != nil {
		_ = j.file.Close() // everything in it is in the new file
	}
	j.file, j.state, j.head = w.file, w.state, w.head
	j.tail, j.size, j.seq, j.synced = w.tail, w.size, w.head.born, w.head.born
	j.sealed, j.broken = false, nil
	j.unread = append(j.unread, w.unread...)
	j.cond.Broadcast()
	return nil
}

// Unread is an image that could not be read when the journal was rewritten. Its
// page is taken to have one still, which Image can't give (ErrUnreadable), until
// another is saved or it is dropped.
type Unread struct {
	File    fileid.ID
	Page    int64
	Pending bool
	Err     error  // what the state disk said
	Kept    string // the path of the journal from before, which has it, perhaps
}

// keepOld gives the old file a second name, since not all of it was copied: what
// can't be read now may be another time, or by other means.
func (j *Journal) keepOld(w *freshFile) error {
	name := fmt.Sprintf("%s.unread-%d", j.path, w.head.first)
	if err := j.disk.Link(j.path, name); err != nil {
		err = errors.Join(err, w.file.Close(), j.disk.Remove(j.path+".new"))
		return fmt.Errorf("keeping the old file, of which not all can be read: %w", diskError(err))
	}
	for n := range w.unread {
		w.unread[n].Kept = name
	}
	return nil
}

// TakeUnread is the images that could not be read when the journal was rewritten,
// since the last call.
func (j *Journal) TakeUnread() []Unread {
	j.mu.Lock()
	defer j.mu.Unlock()
	unread := j.unread
	j.unread = nil
	return unread
}
