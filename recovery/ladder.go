package recovery

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// clearAll writes the pages in order, and returns those in front of the first
// that the medium refuses.
func (r *repair) clearAll() (cleared []*mend, err error) {
	for _, n := range runs(r.mends) {
		for _, m := range n.mends {
			r.awaitList(m)
		}
		done := r.overwrite(n)
		for i, m := range n.mends {
			if i >= done {
				if err := r.clear(m); err != nil {
					r.file.emitFailure(stepOf(err), m.page, err)
					return cleared, err
				}
			}
			if len(m.stillMissing()) > 0 {
				r.damage.noteChanged(m.page)
			}
			cleared = r.mends[:len(cleared)+1]
			r.file.engine.at.Hit(failpoint.PageCleared)
		}
	}
	return cleared, nil
}

// tries is how often that is done which meets poison that was on no list, or not
// there, a moment ago. Where the poison was there it takes two; the others are for
// poison that comes between one try and the next.
const tries = 16

// clear writes one page by the first rung of the ladder that works: a write of the
// page; the raw device where other files share the page, since every write of it copies
// it first, and fails; a punch where the kernel is one that can't clear by writing.
func (r *repair) clear(m *mend) error {
	r.awaitList(m)
	err := r.insist(m)
	if err != nil && mayBePoison(err) && m.page.Off > r.size {
		// The file grows, and some filesystems touch the tail page then (mendTail).
		if err = r.file.mendPage(r.damage, ranges.Page(r.size), r.size, r.who); err != nil {
			return err
		}
		err = r.insist(m)
	}
	if err == nil {
		m.rung = "page-written"
		return nil
	}
	if !mayBePoison(err) {
		return &RepairError{Step: "write", Page: m.page, Err: err}
	}
	if down := r.file.alive(m.page); down != nil {
		return down
	}
	device := r.file.below.Device()
	switch {
	case r.file.below.Corroborate(m.page) != media.Listed:
		return &RepairError{Step: "write", Page: m.page, Err: err}
	case r.isShared(m.page):
		return r.zeroRaw(m)
	case device != nil && errors.Is(err, unix.EFAULT):
		// The firmware would not clear (kernel facts 2). A punch would make free space
		// of the page, and on XFS a trap.
		return &RepairError{Step: "write", Page: m.page, Err: err}
	}
	return r.punch(m)
}

// insist writes the page, and again where that was in vain and nobody has a list that
// says why: some media are clean after the write that failed, and others take a page in
// pieces. What a write has touched may be listed since.
func (r *repair) insist(m *mend) error {
	for try := 1; ; try++ {
		n, err := r.file.rewrite(m)
		if err == nil && n == len(m.content) {
			return nil
		}
		last := err != nil && try > 1 || try == tries || err != nil && !mayBePoison(err)
		if err = orEIO(err); last || r.file.below.Corroborate(m.page) == media.Listed {
			return err
		}
	}
}

// errAppends says why a page can't be rewritten.
var errAppends = fmt.Errorf("the file is append-only, so that a rewrite of the page would go to its end; chattr -a, then write again: %w", unix.EPERM)

// rewrite writes the page where it is.
func (f *File) rewrite(m *mend) (int, error) {
	if f.appends() {
		return 0, errAppends
	}
	return f.below.Pwrite(m.content, m.page.Off, 0)
}

// punch is the rung for kernels before 5.19, where no write clears a listed
// page: its block is freed, and the write gets a clean one. It destroys the
// page for a moment, so the journal must hold the image, and know of the punch:
// a hole that replay finds there is then ours.
func (r *repair) punch(m *mend) error {
	fail := func(err error) error { return &RepairError{Step: "punch", Page: m.page, Err: err} }
	e := r.file.engine
	if err := r.holdImage(m); err != nil {
		return fail(err)
	}
	if err := e.Journal.Punching(m.intent.ID, time.Now().UnixNano()); err != nil {
		return fail(err)
	}
	e.at.Hit(failpoint.PagePunching)
	for try := 1; ; try++ {
		const punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		if err := r.file.below.Allocate(punchHole, m.page.Off, m.page.Len, 0); err != nil {
			if try > 1 {
				r.owe(m)
			}
			return fail(err)
		}
		e.at.Hit(failpoint.PagePunched)
		n, err := r.file.rewrite(m)
		if err == nil && n == len(m.content) {
			m.rung = "punched-and-written"
			return nil
		}
		if err = orEIO(err); try == tries || !mayBePoison(err) || r.file.below.Corroborate(m.page) != media.Listed {
			r.owe(m)
			return fail(err)
		}
	}
}

// holdImage has the journal hold what the page shall be before it is destroyed.
func (r *repair) holdImage(m *mend) error {
	if m.before == nil && (m.intent.Image == nil || !m.fresh.Empty()) { // of a replay nothing else is known
		var err error
		if m.before, err = r.salvaged(m.page); err != nil {
			return err
		}
	}
	if m.intent.Image != nil {
		return nil
	}
	in := r.imageIntent(*m.intent, m)
	if err := r.file.engine.Journal.Begin(in); err != nil {
		return err
	}
	r.intents = append(r.intents, in)
	m.intent = in
	return nil
}

// owe keeps the bytes of a page that was punched and could not be written: they
// are served from the journal until a write of the page succeeds. If they can't
// be kept there, the intent stays open, which has them too.
func (r *repair) owe(m *mend) {
	p := m.before
	if p == nil {
		return // replay: the intent stays open anyway
	}
	err := r.file.engine.Journal.SaveImage(r.damage.id, r.file.path(), journal.Image{
		Page: m.page.Off, Data: slices.Clone(p.data[:]), Missing: p.missing.Slice(), Pending: true,
	})
	if err != nil {
		r.file.emitFailure("journal", m.page, err)
		r.damage.leaveUnclosed(m.page, m.intent.ID)
		return
	}
	r.damage.mu.Lock()
	defer r.damage.mu.Unlock()
	r.damage.images.Add(m.page)
	r.damage.bad.Add(m.page)
}

// leaveUnclosed keeps an intent open until the page is repaired.
func (d *damage) leaveUnclosed(page ranges.Range, id uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unclosed == nil {
		d.unclosed = map[int64][]uint64{}
	}
	d.unclosed[page.Off] = append(d.unclosed[page.Off], id)
}

func (d *damage) isUnclosed(id uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ids := range d.unclosed {
		if slices.Contains(ids, id) {
			return true
		}
	}
	return false
}

func (d *damage) unclosedOf(page ranges.Range) []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unclosed[page.Off]
}
