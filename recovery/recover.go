package recovery

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// recoveryRead is one read after the kernel said no, or where poison is known.
type recoveryRead struct {
	file     *File
	damage   *damage
	buf      []byte // stands for want
	want     ranges.Range
	size     int64
	writes   uint64         // the inode's count when the read began
	touched  []int64        // where reads stopped short: to be read a second time costs more than the line
	known    knownBad       // bad pages served from what is known
	suspects []*page        // pages that failed alone, not classified yet
	well     []ranges.Range // pages taken for bad that read well
}

// try reads want, which lies within the file's size, into buf, as far as that
// changes nothing of what is known. from is what earlier attempts gave. The
// caller holds the inode, shared at least.
func (f *File) try(buf []byte, want ranges.Range, from start, size int64) (*recoveryRead, error) {
	d, err := f.know()
	if err != nil {
		return nil, err
	}
	r := &recoveryRead{file: f, damage: d, buf: buf, want: want, size: size, writes: from.writes, touched: from.touched}
	if from.got > 0 {
		err = r.fetchBehind(ranges.Between(want.Off+from.got, want.End()), want.Off)
	} else {
		err = r.tryAll()
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// isSettled reports whether all that the read met is known already.
func (r *recoveryRead) isSettled() bool {
	return len(r.suspects) == 0 && len(r.well) == 0 && !r.damage.isNews(r.want, &r.known)
}

// settle classifies what failed, and records what is lost and what is found
// again. It returns the bad pages that it did not know. The caller holds the inode
// exclusively.
func (r *recoveryRead) settle(who Caller) ([]*page, error) {
	f, d := r.file, r.damage
	for _, page := range r.well {
		d.forget(page)
		f.dropImages(d, page)
	}
	bad, err := f.classify(d, r.suspects)
	if err != nil {
		return nil, err
	}
	for _, p := range bad {
		f.mergeKept(d, p)
		d.takeHeld(p)
	}
	for _, p := range r.suspects {
		d.letGo(p.whole())
		d.acquit(p.whole())
		p.fill(r.buf, r.want)
	}
	if err := f.recordLoss(d, bad, who); err != nil {
		return nil, err
	}
	r.dropOutdated(bad)
	return bad, r.noticeClean(bad)
}

// dropOutdated forgets the images of pages that read well: somebody has written
// them, or will.
func (r *recoveryRead) dropOutdated(bad []*page) {
	still := ranges.Of(r.known.pages...)
	for _, p := range bad {
		still.Add(p.whole())
	}
	for _, kept := range r.damage.imagesWithin(r.want) {
		for page := ranges.Page(kept.Off); page.Off < kept.End(); page = page.Shift(ranges.PageSize) {
			inFile := page.Intersect(ranges.Between(0, r.size))
			if !still.Overlaps(page) && r.want.Contains(inFile) {
				r.file.dropImages(r.damage, page)
			}
		}
	}
}

// recoverRange is try and settle, and returns all bad pages in want, which is of
// whole pages. The caller holds the inode exclusively.
func (f *File) recoverRange(buf []byte, want ranges.Range, size int64, who Caller) ([]*page, error) {
	r, err := f.try(buf, want, start{writes: f.ino.writes.Load()}, size)
	if err != nil {
		return nil, err
	}
	bad, err := r.settle(who)
	if err != nil {
		return nil, err
	}
	return append(r.knownPages(), bad...), nil
}

// tryAll reads what is between the known-bad pages by halves, and serves those
// from what is known.
func (r *recoveryRead) tryAll() error {
	for pos := r.want.Off; pos < r.want.End(); {
		rest := ranges.Between(pos, r.want.End())
		bad := r.damage.nextBad(rest, nil)
		gap := rest
		if !bad.Empty() {
			gap = ranges.Between(pos, bad.Off)
		}
		if err := r.fetchAround(gap); err != nil {
			return err
		}
		pos = gap.End()
		if bad.Empty() || pos >= r.want.End() {
			continue
		}
		if err := r.serveKnown(bad); err != nil {
			return err
		}
		pos = bad.End()
	}
	return nil
}

// fetch reads a span, splitting it by halves on page boundaries where it fails:
// O(k log n) calls for k bad pages of n. A kernel fails a whole extent's worth
// for one bad sector (fs/dax.c, dax_iomap_iter, 5.19 to 6.18), so the good
// bytes are still to be had.
func (r *recoveryRead) fetch(span ranges.Range) error {
	if span.Empty() {
		return nil
	}
	n, err := r.file.below.Pread(r.slice(span), span.Off)
	switch {
	case err == nil && int64(n) == span.Len:
		return nil
	case err == nil && r.file.endsAt(span.Off+int64(n)):
		return fmt.Errorf("reading %v: %w: %w", span, errShrunk, unix.EIO)
	case err == nil && n > 0:
		return r.fetchBehind(ranges.Between(span.Off+int64(n), span.End()), span.Off)
	case err != nil && !mayBePoison(err):
		return r.file.trouble(span, err)
	case ranges.Page(span.Off).Contains(span):
		r.suspect(span.Off, cause(err))
		return nil
	}
	middle := (span.Off + span.Len/2) &^ (ranges.PageSize - 1)
	if middle <= span.Off {
		middle = ranges.Page(span.Off).End()
	}
	if err := r.fetch(ranges.Between(span.Off, middle)); err != nil {
		return err
	}
	return r.fetch(ranges.Between(middle, span.End()))
}

// fetchAround reads a span, but not once more the lines that stopped an earlier
// attempt.
func (r *recoveryRead) fetchAround(span ranges.Range) error {
	if len(r.touched) == 0 {
		return r.fetch(span)
	}
	for _, at := range slices.Sorted(slices.Values(r.touched)) {
		page := ranges.Page(at)
		if !span.Overlaps(page) || at < span.Off {
			continue
		}
		if err := r.fetch(ranges.Between(span.Off, page.Off)); err != nil {
			return err
		}
		if err := r.touch(at, at); err != nil {
			return err
		}
		span = ranges.Between(page.End(), span.End())
	}
	return r.fetch(span)
}

// fetchBehind goes on where a read of the bytes from from on stopped short.
func (r *recoveryRead) fetchBehind(rest ranges.Range, from int64) error {
	if err := r.touch(rest.Off, from); err != nil {
		return err
	}
	return r.fetch(ranges.Between(ranges.Page(rest.Off).End(), rest.End()))
}

// touch reads the page around the line at which a read of the bytes from from on
// stopped short. That is the first touch of latent poison, and the only moment at
// which the medium names the line: the bytes in front are kept, and the rest of the
// page is asked for before the record of it lands and condemns the page. Where it
// stopped at the start of a page an extent may just have ended there, and the next
// one fails: then the page is asked for as ever.
func (r *recoveryRead) touch(at, from int64) error {
	if !slices.Contains(r.touched, at) {
		r.touched = append(r.touched, at)
	}
	claim := r.damage.claim(ranges.Page(at).Off) // another reader may come to the end of its read first
	p := newPage(at, r.size)
	line := ranges.Range{Off: at &^ (ranges.LineSize - 1), Len: ranges.LineSize}.Intersect(p.want)
	behind := ranges.Between(line.End(), p.want.End())
	if front := ranges.Between(max(p.off, from), at); r.file.ino.writes.Load() == r.writes {
		p.have(r.slice(front), front.Off)
	}
	p.ask(r.file.below, behind)
	if at == p.off && (behind.Empty() || p.missing.Overlaps(behind)) {
		r.damage.abandon(claim)
		return r.fetch(p.want.Intersect(r.want))
	}
	p.ask(r.file.below, ranges.Between(p.off, line.Off))
	p.cause, p.granularity = "short-read", ranges.LineSize
	r.damage.hold(claim, p)
	r.suspects = append(r.suspects, p)
	return nil
}

// suspect notes that the page of off failed alone.
func (r *recoveryRead) suspect(off int64, cause string) *page {
	if n := len(r.suspects); n > 0 && r.suspects[n-1].whole().Contains(ranges.Range{Off: off, Len: 1}) {
		return r.suspects[n-1]
	}
	p := newPage(off, r.size)
	p.cause = cause
	if cause == "efault" {
		p.err = unix.EFAULT
	}
	r.suspects = append(r.suspects, p)
	return p
}

func (r *recoveryRead) slice(span ranges.Range) []byte {
	return r.buf[span.Off-r.want.Off : span.End()-r.want.Off]
}

// mergeKept adds what an earlier look at the page had salvaged.
func (f *File) mergeKept(d *damage, p *page) {
	im, ok, err := f.engine.Journal.Image(d.key, p.off)
	if err != nil || !ok {
		return // what the medium gives now has to do
	}
	if !p.merge(im.Data, im.Missing) {
		f.dropImages(d, p.whole()) // of another time: the page was rewritten by somebody else
	}
}

// noticeClean finds bytes recorded as lost that the medium delivers again: the
// kernel, another tool or another program cleared the poison.
func (r *recoveryRead) noticeClean(bad []*page) error {
	f, d := r.file, r.damage
	lostHere := d.lostWithin(r.want)
	if len(lostHere) == 0 {
		return nil
	}
	missing := ranges.Of(r.known.missing...)
	for _, p := range bad {
		for m := range p.missing.All() {
			missing.Add(m)
		}
	}
	var change ledger.Change
	path := f.path()
	for _, lost := range lostHere {
		for back := range missing.Gaps(lost) {
			for _, m := range f.foundAgain(r.slice(back), back.Off) {
				m.File, m.Path = d.id, path
				change.Moves = append(change.Moves, m)
			}
		}
	}
	if len(change.Moves) == 0 {
		return nil
	}
	if err := f.engine.Ledger.Record(change); err != nil {
		return &RepairError{Step: "ledger", Page: r.want, Err: err}
	}
	d.recorded()
	for _, m := range change.Moves {
		if m.To != ledger.Reinitialized {
			d.noteChanged(m.Range)
		}
		ev := f.event(event.Cleared, m.Range, Caller{})
		ev.Action = "now " + string(m.To)
		f.engine.Events.Emit(ev)
	}
	return nil
}

// foundAgain is what bytes are that were lost and can be read: zeros where poison
// was cleared, which is done by whole lines, and otherwise what was lost. A write that
// the medium refused after a part of it, or that could not be made durable, leaves zeros
// of ours in one line with its bytes: those at the ends.
func (f *File) foundAgain(b []byte, off int64) (moves []ledger.Move) {
	found := ledger.Healed
	if f.ino.isShared() {
		found = ledger.Overwritten // by a write that we did not see, most likely
	}
	add := func(n int, to ledger.State) {
		r := ranges.Range{Off: off, Len: int64(n)}
		off = r.End()
		if last := len(moves) - 1; last >= 0 && moves[last].To == to {
			moves[last].Range.Len += r.Len
		} else if n > 0 {
			moves = append(moves, ledger.Move{Range: r, To: to})
		}
	}
	for start := off; len(b) > 0; {
		data := bytes.IndexByte(b, 0)
		if data < 0 {
			data = len(b)
		}
		zeros := len(b[data:]) - len(bytes.TrimLeft(b[data:], "\x00"))
		at := off + int64(data)
		line := ranges.Range{Off: at + ranges.LineSize - 1, Len: 1}.Widen(ranges.LineSize) // the first that begins in them
		add(data, found)
		if at == start || data+zeros == len(b) || line.End() <= at+int64(zeros) {
			add(zeros, ledger.Reinitialized)
		} else {
			add(zeros, found)
		}
		b = b[data+zeros:]
	}
	return moves
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
