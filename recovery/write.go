package recovery

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Write writes p at off. When it has returned, poison that was known under the
// range is gone from the media, and every other byte of the touched pages is
// what could be salvaged, or zero and recorded. writeback says that the kernel
// writes back a mapped page, most of which nobody wrote. The count may be short
// where an error struck in the middle, as write(2)'s.
func (f *File) Write(p []byte, off int64, writeback bool, who Caller) (int, error) {
	if f.ino.damage.Load() == nil && !f.engine.VerifyWrites {
		f.ino.mu.RLock()
		if f.ino.damage.Load() == nil { // all in one function: see media's Pread
			n, err := f.below.Pwrite(p, off, who.claims())
			f.ino.changed(ranges.Range{Off: off, Len: int64(len(p))})
			f.ino.mu.RUnlock()
			if n == len(p) && err == nil || n > 0 && f.appends() {
				return n, nil
			}
		} else {
			f.ino.mu.RUnlock()
		}
	}
	n, err := f.write(p, ranges.Range{Off: off, Len: int64(len(p))}, writeback, who)
	switch {
	case err == nil:
		return n, nil
	case n > 0 && !writeback:
		return n, nil // the error comes with the next write, as write(2) has it
	}
	return 0, err // of a writeback nobody would ask for the rest
}

// write returns the count that was written in front of an error, and the error.
func (f *File) write(p []byte, r ranges.Range, writeback bool, who Caller) (int, error) {
	n, done, err := f.writeClean(p, r, writeback, who)
	if done {
		return n, err
	}
	unread := errors.Is(err, errUnread)
	f.ino.lock()
	defer f.ino.unlock()
	return f.writeLocked(p, r, writeback, unread, who)
}

// writeLocked is write where the inode is held exclusively.
func (f *File) writeLocked(p []byte, r ranges.Range, writeback, unread bool, who Caller) (int, error) {
	defer f.ino.changed(everything())
	d, err := f.know()
	if err != nil {
		return 0, err
	}
	if err := f.finishOpen(d); err != nil {
		return 0, err
	}
	if err := f.engine.endClosing(d.key, r); err != nil {
		return 0, err
	}
	st, err := f.stat()
	if err != nil {
		return 0, err
	}
	w := &mendingWrite{file: f, damage: d, data: p, at: r, size: st.Size, writeback: writeback, who: who, unread: unread}
	return w.run()
}

// errUnread says that what was written can't be read back, or differs.
var errUnread = errors.New("written, but not to be read back")

// writeClean is the path where nothing is known to be wrong. done is false if
// the write has to be done again with the inode locked; the error may be
// errUnread then.
func (f *File) writeClean(p []byte, r ranges.Range, writeback bool, who Caller) (n int, done bool, err error) {
	f.ino.mu.RLock()
	defer f.ino.mu.RUnlock()
	d := f.ino.damage.Load()
	if d != nil && f.engine.Semantics.Recover && (d.concernsWrite(r) || f.engine.isClosing(d.key, r)) {
		return 0, false, nil
	}
	defer f.ino.changed(r)
	shared := f.ino.isShared()
	var unread error
	n, err = f.writeAll(p, r.Off, who)
	if n > 0 && f.engine.VerifyWrites {
		if bad := f.verifyShared(p[:n], r.Off, shared); bad != nil {
			n, err, unread = 0, bad, errUnread
		}
	}
	switch {
	case err == nil && d != nil:
		return n, true, f.noteWritten(d, p, r, writeback)
	case err == nil:
		return n, true, nil
	case mayBePoison(err) && f.engine.Semantics.Recover && !f.appends():
		return 0, false, unread
	}
	return n, true, f.trouble(r, err)
}

// writeAll writes until all is written or the medium gives an error.
func (f *File) writeAll(p []byte, off int64, who Caller) (int, error) {
	done := 0
	for done < len(p) {
		n, err := f.below.Pwrite(p[done:], off+int64(done), who.claims())
		done += n
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, unix.EIO
		}
	}
	return done, nil
}

// noteWritten moves the ledger's rows under bytes that were just written, and
// forgets the images of their pages.
func (f *File) noteWritten(d *damage, p []byte, r ranges.Range, writeback bool) error {
	f.dropImages(d, r)
	return f.noteRows(d, p, r, writeback)
}

func (f *File) noteRows(d *damage, p []byte, r ranges.Range, writeback bool) error {
	change := ledger.Change{Moves: f.overwrites(d, p, r, writeback, f.path)}
	return f.recordGone(d, r, change)
}

// recordGone records that zeros were replaced, in r. The data comes first: the
// power could take it back, and the zeros would be there again without a record.
func (f *File) recordGone(d *damage, r ranges.Range, change ledger.Change) error {
	if len(change.Moves) == 0 {
		return nil
	}
	if f.below.Sync(false) != nil {
		return nil // the record stays until the next write there; that data is not durable is fsync's to tell
	}
	if err := f.engine.Ledger.Record(change); err != nil {
		return &RepairError{Step: "ledger", Page: r, Err: err}
	}
	d.recorded()
	return nil
}

// overwrites is what a write of p at r does to the ledger's live rows. Zeros
// that a mapping writes back into bytes that were lost are most likely our own:
// those stay as they are. path is asked for where there are such rows only.
func (f *File) overwrites(d *damage, p []byte, r ranges.Range, writeback bool, path func() string) []ledger.Move {
	rows := append(d.reinitWithin(r), d.lostWithin(r)...)
	if len(rows) == 0 {
		return nil
	}
	var moves []ledger.Move
	for _, live := range rows {
		pieces := d.notCopied(live)
		if writeback {
			pieces = nonZero(p[live.Off-r.Off:live.End()-r.Off], live.Off)
		}
		for _, piece := range pieces {
			moves = append(moves, ledger.Move{File: d.id, Path: path(), Range: piece, To: ledger.Overwritten})
		}
	}
	return moves
}

// nonZero is the pieces of b, which starts at off, that hold data.
func nonZero(b []byte, off int64) []ranges.Range {
	var out []ranges.Range
	for i, c := range b {
		at := off + int64(i)
		switch n := len(out); {
		case c == 0:
		case n > 0 && out[n-1].End() == at:
			out[n-1].Len++
		default:
			out = append(out, ranges.Range{Off: at, Len: 1})
		}
	}
	return out
}

// mendingWrite is one write with the inode locked exclusively: good pages are
// written as they come, bad ones are repaired at the end, in one batch.
type mendingWrite struct {
	file      *File
	damage    *damage
	data      []byte
	at        ranges.Range // of data
	size      int64        // of the file before
	writeback bool
	who       Caller
	unread    bool // it was written once, and could not be read back
	refused   int  // how often for poison that came in between (isBadSince)

	mends []*mend
	found ranges.Set // bad pages met by this write; those of which all is kept are known besides
}

// run returns how much is written, and what stopped it.
func (w *mendingWrite) run() (int, error) {
	if err := w.lookFirst(); err != nil {
		return 0, err
	}
	stop, err := w.writeGood()
	if mended, mendErr := w.repairBad(stop); mendErr != nil {
		stop, err = mended, mendErr
	}
	done := stop - w.at.Off
	if done > 0 {
		written := ranges.Between(w.at.Off, stop)
		if noteErr := w.file.noteRows(w.damage, w.data[:done], written, w.writeback); noteErr != nil {
			err = noteErr
		}
	}
	return int(done), err
}

// lookFirst reads the pages that the ledger calls lost, or that have an image,
// but that nobody has met since the mount: what can be salvaged of them has to
// be known before they are written. Of a shared file nothing known is sure. What
// could not be read back may be cleared by a second write, and would never be told of.
func (w *mendingWrite) lookFirst() error {
	inFile := w.at.Widen(ranges.PageSize).Intersect(ranges.Between(0, w.size))
	if w.unread || w.file.ino.isShared() {
		_, err := w.inspect(inFile)
		return err
	}
	for _, old := range append(w.damage.lostWithin(inFile), w.damage.imagesWithin(inFile)...) {
		for off := ranges.Page(old.Off).Off; off < old.End(); off += ranges.PageSize {
			if w.damage.isBad(ranges.Page(off)) {
				continue
			}
			if _, err := w.inspect(ranges.Page(off)); err != nil {
				return err
			}
		}
	}
	return nil
}

// inspect finds the bad pages in r, and keeps them in mind.
func (w *mendingWrite) inspect(r ranges.Range) (bad int, err error) {
	pages, err := w.file.inspect(r, w.size, w.who)
	for _, p := range pages {
		w.found.Add(p.whole())
	}
	return len(pages), err
}

// writeGood writes what lies between bad pages, finding more bad ones as the
// medium refuses, and queues a mend for each bad one. It returns the offset up
// to which all is written or queued.
func (w *mendingWrite) writeGood() (int64, error) {
	if err := w.file.mendTail(w.damage, w.size, w.at.Off, w.who); err != nil {
		return w.at.Off, err
	}
	for pos := w.at.Off; pos < w.at.End(); {
		rest := ranges.Between(pos, w.at.End())
		bad := w.damage.nextBad(rest, &w.found)
		if !bad.Empty() && bad.Off <= pos {
			bad = ranges.Page(bad.Off)
			fresh := bad.Intersect(w.at)
			if err := w.file.mayRewrite(bad, fresh, w.writeback); err != nil {
				return pos, err
			}
			w.mends = append(w.mends, &mend{page: bad, fresh: fresh, data: w.slice(fresh)})
			pos = bad.End()
			continue
		}
		run := rest
		if !bad.Empty() {
			run = ranges.Between(pos, bad.Off)
		}
		if run.End() > w.size { // the file grows only if all before can be repaired
			if mended, err := w.repairBad(pos); err != nil {
				return mended, err
			}
		}
		shared := w.file.ino.isShared()
		n, err := w.file.writeAll(w.slice(run), run.Off, w.who)
		if n > 0 && w.file.engine.VerifyWrites {
			again, bad := w.readBack(ranges.Range{Off: run.Off, Len: int64(n)}, shared)
			if bad != nil {
				return pos, bad
			}
			if again {
				continue
			}
		}
		pos += int64(n)
		if err == nil {
			continue
		}
		if err := w.blame(ranges.Between(pos, run.End()), err); err != nil {
			return pos, err
		}
	}
	return w.at.End(), nil
}

// blame finds out why the medium refused to write run. A nil error means that
// it is worth going on: bad pages were found, or the refusal was passing.
func (w *mendingWrite) blame(run ranges.Range, err error) error {
	if !mayBePoison(err) || w.file.appends() {
		return w.file.trouble(run, err)
	}
	inFile := run.Widen(ranges.PageSize).Intersect(ranges.Between(0, w.size))
	if bad, err := w.inspect(inFile); err != nil || bad > 0 {
		return err
	}
	// Some filesystems touch the tail page when a file grows behind it (XFS, lab facts).
	if run.End() > w.size {
		if err := w.file.mendPage(w.damage, ranges.Page(w.size), w.size, w.who); err != nil {
			return err
		}
	}
	if _, again := w.file.writeAll(w.slice(run), run.Off, w.who); again != nil && !w.isBadSince(run, again) {
		return w.file.outage(run, again) // all pages read well, and still it can't be written
	}
	return nil
}

// isBadSince reports whether the medium refuses run for poison that has come since
// its pages, or the tail page, were looked at: it is worth looking again.
func (w *mendingWrite) isBadSince(run ranges.Range, err error) bool {
	w.refused++
	touched := ranges.Between(min(run.Off, w.size), run.End()).Widen(ranges.PageSize)
	return mayBePoison(err) && w.refused < tries && w.file.below.Corroborate(touched) == media.Listed
}

// repairBad mends the queued pages, all else up to stop being written. It
// returns the offset up to which the whole write is done.
func (w *mendingWrite) repairBad(stop int64) (int64, error) {
	if len(w.mends) == 0 {
		return stop, nil
	}
	rep := &repair{file: w.file, damage: w.damage, size: w.size, end: max(w.size, stop), mends: w.mends,
		data: w.data, at: w.at.Off, own: true, writeback: w.writeback, who: w.who}
	w.mends = nil
	failed, err := rep.run()
	if err != nil {
		return max(failed.Off, w.at.Off), err
	}
	return stop, nil
}

func (w *mendingWrite) slice(r ranges.Range) []byte {
	return w.data[r.Off-w.at.Off : r.End()-w.at.Off]
}

// inspect finds the bad pages in r; they are known and recorded afterwards. The
// caller holds the inode exclusively.
func (f *File) inspect(r ranges.Range, size int64, who Caller) ([]*page, error) {
	want := r.Intersect(ranges.Between(0, size))
	if want.Empty() {
		return nil, nil
	}
	return f.recoverRange(make([]byte, want.Len), want, size, who)
}
