package mount

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Pending is the repairs that are under way or were given up.
func (r *records) Pending(ctx context.Context, path string) ([]control.Pending, error) {
	all, err := r.unfinished()
	if err != nil {
		return nil, err
	}
	in, err := r.scope(ctx, path, func(yield func(seenFile, error) bool) {
		for _, p := range all {
			if !yield(seenFile{p.File, p.Name()}, nil) {
				return
			}
		}
	})
	if err != nil {
		return nil, err
	}
	list := []control.Pending{}
	for _, p := range all {
		if name, ok := in(p.File, p.Name()); ok {
			p.Path, p.PathB64 = control.Wire(name)
			list = append(list, p)
		}
	}
	return list, nil
}

func (r *records) unfinished() ([]control.Pending, error) {
	why := control.Interrupted
	if r.running {
		why = control.UnderWay
	}
	var all []control.Pending
	for _, in := range r.open() {
		all = append(all, pending(in, why))
	}
	for _, in := range r.journal.Kept() {
		all = append(all, pending(in, control.Conflict))
	}
	for owed, err := range r.journal.Images(true) {
		p := control.Pending{File: owed.File, Range: ranges.Page(owed.Page), Image: owed.Data, Missing: owed.Missing}
		if err != nil { // of that one the rest is told
			p.Unread = err.Error()
		}
		p.Path, p.PathB64 = control.Wire(owed.Path)
		all = append(all, because(p, control.Refused))
	}
	return all, nil
}

// open is the intents whose repair is not finished: the ledger may know of one
// as closed that the journal has not yet marked.
func (r *records) open() []journal.Intent {
	return slices.DeleteFunc(r.journal.Intents(), func(in journal.Intent) bool { return r.ledger.Closed(in.ID) })
}

func pending(in journal.Intent, why control.Why) control.Pending {
	p := control.Pending{
		ID: in.ID, File: in.File, Range: in.Range, Size: in.End,
		Time: time.Unix(0, in.Time).UTC(), Image: in.Image, Missing: in.Missing,
	}
	p.Path, p.PathB64 = control.Wire(in.Path)
	return because(p, why)
}

func because(p control.Pending, why control.Why) control.Pending {
	p.Why, p.Kept = why, why == control.Conflict || why == control.Refused
	switch why {
	case control.UnderWay:
		p.Next = "nothing, if it is gone in a moment; else see TROUBLE in mendfs status, and whether the mount is read-only"
	case control.Interrupted:
		p.Next = "mount again, the same way: that finishes it; do not use the backing directory before"
	case control.Conflict:
		p.Next = "mendfs lost --export DIR, compare the image with the file, put back what is missing there; --export NEWDIR --drop then forgets it"
	case control.Refused:
		p.Next = "write the whole page again, or mendfs lost --export DIR and replace the file; reads through the mount get the image meanwhile"
	}
	return p
}

// dropKept is control.Backend's Drop.
func dropKept(j *journal.Journal, id uint64) error {
	err := j.Drop(id)
	if errors.Is(err, journal.ErrNoIntent) {
		return usage("see mendfs lost --pending --json: only a conflict can be dropped", "no conflict has the id %d", id)
	}
	if err == nil {
		err = j.Sync()
	}
	if err != nil {
		return failed(err, roomNext(err), "the image of the conflict %d can't be dropped for good", id)
	}
	return nil
}

// EachSalvaged calls do with the best images of bad pages that the state directory
// dir keeps, whether or not a mount runs on it: bytes that may be nowhere else.
// Those of repairs that are pending are not among them. Of one that can't be read do
// gets why, and only File and Page. It ends with the first error that do returns.
func EachSalvaged(dir string, do func(im journal.Saved, unread error) error) error {
	j, err := journal.View(filepath.Join(dir, journalFile))
	if err != nil {
		return damaged(err, dir)
	}
	defer func() { _ = j.Shutdown() }() // only read
	for im, unread := range j.Images(false) {
		if im.Pending {
			continue
		}
		if err := do(im, unread); err != nil {
			return err
		}
	}
	return nil
}
