package recovery

import (
	"errors"
	"iter"
	"slices"

	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// withoutImage ends a repair in which the application wrote whole pages: its
// write never returned, so either state of a page is right. Pages that are still
// bad stay lost. Where the power went, what can be read may be neither state but
// what the memory held between clear and copy: such pages go back to what was
// salvaged of them.
func (rp *replay) withoutImage() error {
	e, in := rp.engine, rp.in
	if !e.ReadOnly && rp.stat.Size == in.Range.End() && in.End < rp.stat.Size {
		if err := rp.restore(); err != nil {
			return err
		}
	}
	back := map[int64]bool{}
	var moves []ledger.Move
	if in.Boot != e.boot && rp.ours {
		var err error
		if moves, err = rp.rollBack(back); err != nil {
			return err
		}
	}
	if e.ReadOnly {
		return nil
	}
	action := "whole-pages"
	if len(back) > 0 {
		action = "rolled-back"
	}
	for page := range rp.wholePages() {
		if p := newPage(page.Off, rp.stat.Size); !back[page.Off] && !p.want.Empty() && p.retry(rp.file.below) == nil {
			moves = append(moves, rp.move(page, ledger.Overwritten))
		}
	}
	return e.settled(rp.file, in, action, moves)
}

// wholePages yields the pages that the application was writing.
func (rp *replay) wholePages() iter.Seq[ranges.Range] {
	return func(yield func(ranges.Range) bool) {
		for _, fresh := range rp.in.Overwritten {
			for page := ranges.Page(fresh.Off); page.Off < fresh.End(); page = page.Shift(ranges.PageSize) {
				if !yield(page) {
					return
				}
			}
		}
	}
}

// rollBack gives the pages of an intent without image that are torn their content
// from before the repair, adds them to back, and returns what that does to the
// ledger. On a read-only mount it is served only. Of an intent that does not tell,
// all pages that can be read may be torn.
func (rp *replay) rollBack(back map[int64]bool) ([]ledger.Move, error) {
	pages, sure, err := rp.tornPages()
	if err != nil {
		return nil, err
	}
	for page := range rp.wholePages() {
		// What the end of the file cuts in two has no sum to be compared with: the
		// write would have made the file longer, so it is not there.
		if inFile := newPage(page.Off, rp.stat.Size).want; !sure && !slices.Contains(pages, page) || !inFile.Empty() && inFile != page {
			pages = append(pages, page)
		}
	}
	var moves []ledger.Move
	for _, page := range pages {
		old, found, err := rp.before(page, sure)
		if err == nil && found == torn {
			err = old.putBack()
		}
		if err != nil {
			return nil, err
		}
		if found == torn || found == equal { // equal: a crash has interrupted us
			back[page.Off] = true
			rp.in.Lost = append(rp.in.Lost, old.in.Lost...)
			moves = append(moves, old.moves()...)
		}
	}
	return moves, nil
}

// before is a replay that would give a page what was salvaged of it before the
// repair, and what there is now. Where nothing was kept (the salvage area was
// full) that is zeros, if the page is sure to be torn.
func (rp *replay) before(page ranges.Range, sure bool) (old *replay, found outcome, err error) {
	was := page.Intersect(ranges.Between(0, rp.in.Size))
	im, kept, err := rp.engine.Journal.Image(rp.in.File.Key(), page.Off)
	switch {
	case err != nil:
		return nil, 0, err
	case !kept && !sure && !ranges.Of(rp.in.Lost...).Contains(was):
		return nil, newer, nil
	case !kept:
		im = journal.Image{Page: page.Off, Data: make([]byte, ranges.PageSize), Missing: []ranges.Range{was}}
	}
	in := *rp.in
	in.Range, in.Image, in.Missing, in.Overwritten = page, im.Data, im.Missing, nil
	in.Lost = im.Missing
	in.End = rp.in.Size // the write is not there
	old = newReplay(rp.engine, &in, rp.file, rp.stat)
	found, err = old.look()
	return old, found, err
}

// putBack writes the image of a page that can be read; where that can't be, it
// serves it.
func (rp *replay) putBack() error {
	if rp.engine.ReadOnly {
		return rp.engine.serveFromImage(rp.in)
	}
	if ranges.Of(rp.in.Missing...).Contains(ranges.Page(rp.in.Range.Off).Intersect(ranges.Between(0, rp.in.Size))) {
		// Nothing was salvaged, and what can be read now may be the old page.
		found := *rp.in
		found.ID, found.Sums, found.Missing, found.Lost = 0, nil, nil, nil
		found.Image = make([]byte, ranges.PageSize)
		copy(found.Image, rp.page)
		if err := rp.engine.Journal.Keep(&found); err != nil {
			return err
		}
	}
	err := rp.rewrite()
	var refused *RepairError
	if errors.As(err, &refused) {
		rp.file.emitFailure("write", rp.in.Range, refused)
		if err := rp.engine.Journal.Begin(rp.in); err != nil { // of this page alone: its next repair closes it
			return err
		}
		return rp.engine.serveFromImage(rp.in)
	}
	return err
}
