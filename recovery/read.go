package recovery

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Read reads into p from off. The count is short only at the true end of the
// file; lost bytes are zero, and were recorded before Read returns. An error
// means that not one byte may be used: the failure was no poison
// (*OutageError), or the semantics want it (*PoisonError).
func (f *File) Read(p []byte, off int64, who Caller) (int, error) {
	f.ino.mu.RLock()
	defer f.ino.mu.RUnlock()
	want := ranges.Range{Off: off, Len: int64(len(p))}
	d := f.ino.damage.Load()
	got := 0
	if d == nil || !d.concernsRead(want) {
		n, err := f.below.Pread(p, off)
		if err == nil && n == len(p) {
			return n, nil
		}
		if err != nil && !mayBePoison(err) {
			return 0, f.trouble(want, err)
		}
		if err == nil && f.endsAt(off+int64(n)) {
			return n, nil
		}
		got = n
	}
	for {
		n, err := f.readHurt(p, want, got, who)
		if !errors.Is(err, errShrunk) {
			return n, err
		}
		got = 0
	}
}

// errShrunk says that the file became shorter while it was being read.
var errShrunk = errors.New("the file shrank")

// readHurt is the read after the kernel said no, or where poison is known. got
// bytes at the front of p came from a read that stopped short behind them.
func (f *File) readHurt(p []byte, want ranges.Range, got int, who Caller) (int, error) {
	st, err := f.stat()
	if err != nil {
		return 0, err
	}
	want = want.Intersect(ranges.Between(0, st.Size)) // a bad sector past the end must not fail the read
	if want.Empty() {
		return 0, nil
	}
	p = p[:want.Len]
	if !f.engine.Semantics.Recover {
		return f.readStrictly(p, want, who)
	}
	pages, err := f.recoverRange(p, want, int64(got), st.Size, who)
	if err != nil {
		return 0, err
	}
	f.recordRead(want, pages, who)
	return len(p), nil
}

// endsAt reports whether the file really ends at or before off.
func (f *File) endsAt(off int64) bool {
	st, err := f.below.Stat()
	return err == nil && off >= st.Size
}

// readStrictly answers as the medium does, except that the count is never short
// before the end: the kernel's FUSE would take it as the end of the file.
func (f *File) readStrictly(p []byte, want ranges.Range, who Caller) (int, error) {
	for done := 0; done < len(p); {
		n, err := f.below.Pread(p[done:], want.Off+int64(done))
		done += n
		if err == nil && n > 0 {
			continue
		}
		if err == nil {
			return done, nil // the file was cut meanwhile
		}
		rest := ranges.Between(want.Off+int64(done), want.End())
		if !mayBePoison(err) {
			return 0, f.trouble(rest, err)
		}
		avoid := ranges.Of(rest.Widen(ranges.PageSize))
		if f.below.Corroborate(rest) != media.Listed && f.below.Control(avoid) != nil {
			return 0, f.outage(rest, err)
		}
		ev := f.event(event.Detected, rest.Intersect(ranges.Page(rest.Off)), who)
		ev.Detected, ev.Action, ev.Error = cause(err), "passed-through", err.Error()
		ev.Next = "the semantics are strict: overwrite whole pages, or mount with --semantics recover"
		f.engine.Events.Emit(ev)
		return 0, &PoisonError{Range: rest, Err: err}
	}
	return len(p), nil
}

// recoverRange reads want, which lies within the file's size, into buf: every
// byte that can be had, zeros for the rest. It returns the bad pages in want,
// which are recorded. got bytes of buf are there already: a read that stopped
// short behind them. The caller holds the inode's lock, shared or exclusive.
func (f *File) recoverRange(buf []byte, want ranges.Range, got, size int64, who Caller) ([]*page, error) {
	d, err := f.know()
	if err != nil {
		return nil, err
	}
	r := &recoveryRead{file: f, damage: d, buf: buf, want: want, size: size}
	if got > 0 {
		err = r.fetchBehind(ranges.Between(want.Off+got, want.End()), want.Off)
	} else {
		err = r.tryAll()
	}
	if err != nil {
		return nil, err
	}
	bad, err := f.classify(d, r.suspects)
	if err != nil {
		return nil, err
	}
	for _, p := range bad {
		f.mergeKept(d, p)
	}
	for _, p := range r.suspects {
		p.fill(buf, want)
	}
	if err := f.recordLoss(d, bad, who); err != nil {
		return nil, err
	}
	pages := append(r.known, bad...)
	return pages, f.noticeClean(d, buf, want, pages)
}

// recoveryRead is one read after the kernel said no.
type recoveryRead struct {
	file     *File
	damage   *damage
	buf      []byte // stands for want
	want     ranges.Range
	size     int64
	known    []*page // bad pages served from what is known
	suspects []*page // pages that failed alone, not classified yet
}

// tryAll reads what is between the known-bad pages by halves, and serves those
// from what is known.
func (r *recoveryRead) tryAll() error {
	for pos := r.want.Off; pos < r.want.End(); {
		rest := ranges.Between(pos, r.want.End())
		bad := r.damage.nextBad(rest)
		gap := rest
		if !bad.Empty() {
			gap = ranges.Between(pos, bad.Off)
		}
		if err := r.fetch(gap); err != nil {
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

// serveKnown serves a known-bad page from its image, or as zeros where it has
// none. A page on nobody's list is asked once more before.
func (r *recoveryRead) serveKnown(bad ranges.Range) error {
	p := newPage(bad.Off, r.size)
	p.known, p.verdict = true, media.Listed
	if r.damage.isUnsure(bad) {
		p.verdict = media.Unknown
		err := p.retry(r.file.below)
		if err == nil {
			r.damage.forget(bad) // it reads well again
			p.fill(r.buf, r.want)
			return nil
		}
		if !mayBePoison(err) {
			return r.file.trouble(bad, err)
		}
	}
	im, ok, err := r.file.engine.Journal.Image(r.damage.key, bad.Off)
	if err != nil {
		return fmt.Errorf("reading the kept image of page %v: %w", bad, err)
	}
	if ok && !p.merge(im.Data, im.Missing) {
		r.file.dropImages(r.damage, bad) // of another time
		r.damage.forget(bad)
		return r.fetch(bad.Intersect(r.want))
	}
	p.fill(r.buf, r.want)
	r.known = append(r.known, p)
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

// fetchBehind goes on where a read stopped short. In the middle of a page that
// is the first touch of latent poison, and the only moment at which the medium
// names the line: the bytes in front are kept, and the bytes behind are asked
// for before the record of it lands and condemns the page.
func (r *recoveryRead) fetchBehind(rest ranges.Range, from int64) error {
	if rest.Off%ranges.PageSize == 0 {
		return r.fetch(rest)
	}
	p := r.suspect(rest.Off, "short-read")
	front := ranges.Between(max(p.off, from), rest.Off)
	p.have(r.slice(front), front.Off)
	line := ranges.Range{Off: rest.Off &^ (ranges.LineSize - 1), Len: ranges.LineSize}
	p.granularity = ranges.LineSize
	if behind := ranges.Between(line.End(), p.want.End()); !behind.Empty() {
		var buf [ranges.PageSize]byte
		if n, err := r.file.below.Pread(buf[:behind.Len], behind.Off); err == nil {
			p.have(buf[:n], behind.Off)
		}
	}
	return r.fetch(ranges.Between(p.whole().End(), rest.End()))
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
func (f *File) noticeClean(d *damage, buf []byte, want ranges.Range, bad []*page) error {
	if len(d.lostWithin(want)) == 0 {
		return nil
	}
	missing := ranges.Of()
	for _, p := range bad {
		for m := range p.missing.All() {
			missing.Add(m)
		}
	}
	var change ledger.Change
	path := f.path()
	for _, lost := range d.lostWithin(want) {
		for back := range missing.Gaps(lost) {
			to := ledger.Healed
			if isZero(buf[back.Off-want.Off : back.End()-want.Off]) {
				to = ledger.Reinitialized
			}
			change.Moves = append(change.Moves, ledger.Move{File: d.id, Path: path, Range: back, To: to})
		}
	}
	if len(change.Moves) == 0 {
		return nil
	}
	if err := f.engine.Ledger.Record(change); err != nil {
		return &RepairError{Step: "ledger", Page: want, Err: err}
	}
	d.apply(change)
	for _, m := range change.Moves {
		ev := f.event(event.Cleared, m.Range, Caller{})
		ev.Action = "now " + string(m.To)
		f.engine.Events.Emit(ev)
	}
	return nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
