package recovery

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// serveFromImage leaves the intent open, and serves its image meanwhile.
func (e *Engine) serveFromImage(in *journal.Intent) error {
	err := e.Journal.SaveImage(in.File, in.Path, journal.Image{Page: in.Range.Off, Data: in.Image, Missing: in.Missing, Pending: true})
	if err != nil {
		return err
	}
	zero := *in
	zero.Lost = in.Missing
	return e.Ledger.Record(ledger.Change{Lost: e.losses(&zero)}) // their rows may not have been durable
}

// owe ends the replay of an intent whose page the medium refuses to clear: its
// image is served until a write of the page succeeds.
func (rp *replay) owe(refused *RepairError) error {
	e, in := rp.engine, rp.in
	if err := rp.certain(in.Range); err != nil {
		return err
	}
	if err := e.serveFromImage(in); err != nil {
		return err
	}
	e.at.Hit(failpoint.ReplayOwed)
	emptied := refused.Step == "raw" && newPage(in.Range.Off, rp.stat.Size).retry(rp.file.below) == nil
	if rp.page != nil || emptied { // it can be read: only the open intent says that it is torn
		rp.file.emitFailure("write", in.Range, refused)
		return nil
	}
	change := ledger.Change{Lost: e.losses(in), Close: []uint64{in.ID}}
	for _, r := range in.Overwritten {
		change.Moves = append(change.Moves, ledger.Move{File: in.File, Path: in.Path, Range: r, To: ledger.Overwritten})
	}
	if err := e.Ledger.Commit(change); err != nil {
		return err
	}
	rp.file.emitFailure("write", in.Range, refused)
	return e.closed(change.Close)
}

// losses are the bytes that were lost when the intent was made: the crash may
// have come before their rows were durable.
func (e *Engine) losses(in *journal.Intent) []ledger.Loss {
	var out []ledger.Loss
	for _, r := range in.Lost {
		out = append(out, ledger.Loss{File: in.File, Path: in.Path, Range: r, Cause: "eio", Source: e.Medium.Source(), Granularity: min(r.Len, ranges.PageSize)})
	}
	return out
}

// reviewImages drops, before anything is served, the images that nobody needs:
// those of files that are gone, and those owed to a page that reads well. A hole
// is what our own punch left, and zeros are what is left on the device of a page that
// files share: there the image is all there is.
func (e *Engine) reviewImages() error {
	open := map[string]*ranges.Set{}
	for _, in := range e.Journal.Intents() {
		if e.Ledger.Closed(in.ID) {
			continue
		}
		if open[in.File.Key()] == nil {
			open[in.File.Key()] = ranges.Of()
		}
		open[in.File.Key()].Add(in.Range)
	}
	gone := map[string]bool{}
	for im, err := range e.Journal.Images(false) {
		if err != nil && !errors.Is(err, journal.ErrUnreadable) {
			return fmt.Errorf("reading the images of bad pages: %w", err)
		}
		key, page := im.File.Key(), ranges.Page(im.Page)
		if set := open[key]; set != nil && set.Overlaps(page) {
			continue // replay decides
		}
		if _, asked := gone[key]; !asked {
			gone[key] = fileid.Gone(e.Root, im.File, im.Path)
		}
		if !gone[key] && (!im.Pending || !e.readsWell(im)) {
			continue
		}
		if err := e.Journal.DropImages(key, page); err != nil {
			return fmt.Errorf("dropping the image of %q %v: %w", im.Path, page, err)
		}
	}
	return nil
}

// outlived is the pages of a settled intent of which no image is needed: they are no longer
// bad, or no longer the file's, or of an application's write that was done.
func outlived(f *File, in *journal.Intent, action string, moves []ledger.Move) (pages []ranges.Range) {
	if in.Image != nil && (f != nil || action == "file-gone") {
		pages = append(pages, in.Range)
	}
	for _, m := range moves {
		if in.Image == nil && m.To == ledger.Overwritten {
			pages = append(pages, m.Range)
		}
	}
	return pages
}

// dropOutlived drops the images of pages whose repair is done, durably: see dropImagesNow.
func (e *Engine) dropOutlived(id fileid.ID, r ranges.Range) error {
	if !e.Journal.Pages(id.Key()).Overlaps(r) {
		return nil
	}
	if err := e.Journal.DropImages(id.Key(), r); err != nil {
		return err
	}
	return e.Journal.Sync()
}

// readsWell reports whether the page of an image can be read and is nothing that a
// repair has emptied.
func (e *Engine) readsWell(im journal.Saved) bool {
	fd, err := fileid.Open(e.Root, im.File, im.Path, unix.O_RDONLY)
	if err != nil {
		return errors.Is(err, fileid.ErrGone) && fileid.Gone(e.Root, im.File, im.Path) // without handles it may be called otherwise
	}
	defer unix.Close(fd)
	f := e.Medium.Open(fd)
	st, err := f.Stat()
	if err != nil {
		return false
	}
	if hole, err := f.IsHole(ranges.Page(im.Page)); hole || err != nil {
		return false
	}
	p := newPage(im.Page, st.Size)
	return p.want.Empty() || p.retry(f) == nil && !p.mayBeEmptied(im.Data)
}

// Sweep moves the ledger's rows of files that are gone to the history, and drops
// their images: nobody can lose those bytes any more, and no alert about them
// should stay. A file is gone when its handle is stale; without handles nobody
// can know.
func (e *Engine) Sweep() error {
	var change ledger.Change
	for _, f := range e.Ledger.Files(false) {
		if fileid.Gone(e.Root, f.ID, f.Path) {
			change.Moves = append(change.Moves, ledger.Move{File: f.ID, Path: f.Path, Range: everything(), To: ledger.Overwritten})
		}
	}
	if len(change.Moves) == 0 || e.mayBeDown() { // of a filesystem that is down every handle is stale
		return nil
	}
	for _, m := range change.Moves {
		if err := e.Journal.DropImages(m.File.Key(), everything()); err != nil {
			return fmt.Errorf("dropping the images of a file that is gone: %w", err)
		}
	}
	return e.Ledger.Record(change)
}
