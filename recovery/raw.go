package recovery

import (
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// isShared reports whether other files have the page's blocks, too. Where the
// device can't be asked nobody knows, and no file is taken for one.
func (r *repair) isShared(page ranges.Range) bool {
	device := r.file.below.Device()
	if device == nil {
		return false
	}
	_, shared, err := device.Listed(page)
	return err == nil && !shared.Empty()
}

// zeroRaw is the rung for a page that other files share: the device itself is
// told to clear its bad sectors, and the write then gets this file a copy of its
// own. The others keep the page, with zeros for what was lost for all of them, and
// with a record of that before it is so.
func (r *repair) zeroRaw(m *mend) error {
	fail := func(err error) error { return &RepairError{Step: "raw", Page: m.page, Err: err} }
	if err := r.holdImage(m); err != nil {
		return fail(err)
	}
	r.file.engine.at.Hit(failpoint.PageZeroing)
	device := r.file.below.Device()
	if at, ok := device.Place(m.page.Off); ok {
		m.was = &at // the write moves this file's page
	}
	if err := r.noteZeroing(m); err != nil {
		return fail(err)
	}
	mayZero := true
	err := device.Zero(m.page, func(doomed *ranges.Set) error {
		err := r.tellSharers(m, doomed)
		mayZero = err == nil
		return err
	})
	if err != nil {
		if mayZero {
			r.owe(m) // some of it may be zero
		}
		return fail(err)
	}
	r.file.engine.at.Hit(failpoint.PageZeroed)
	r.sharersZeroed(m.sharers)
	n, err := r.file.rewrite(m)
	if err != nil || n < len(m.content) {
		if noted := r.noteZeroing(m); noted != nil { // the write may have moved the ctime
			r.file.emitFailure("journal", m.page, noted)
		}
		r.owe(m) // what the device has now is zero, and reads well
		return fail(orEIO(err))
	}
	m.rung = "raw-zeroed-and-written"
	return nil
}

// tellSharers finds out who loses the doomed bytes besides this file, and has it recorded.
func (r *repair) tellSharers(m *mend, doomed *ranges.Set) (err error) {
	if m.sharers, err = r.findSharers(m.page, doomed); err != nil {
		return err
	}
	if err := r.recordSharers(m.sharers); err != nil {
		return err
	}
	r.file.engine.at.Hit(failpoint.SharersRecorded)
	return nil
}

// noteZeroing has replay know, by the ctime, a page that the device has cleared and
// nobody has written since. It is the ctime of now: XFS has moved it for the write that
// failed before (xfs_file_write_checks, Linux 6.12; TestKillWhileAPageIsCuredAgain).
func (r *repair) noteZeroing(m *mend) error {
	st, err := r.file.below.Stat()
	if err != nil {
		return err
	}
	return r.file.engine.Journal.Zeroing(m.intent.ID, time.Now().UnixNano(), st.Ctime)
}

// How long the kernel may take to list poison that a read has run into: the
// handler of machine checks has that done by a worker (kernel facts 1).
const (
	listPatience = 100 * time.Millisecond
	listInterval = 5 * time.Millisecond
)

// awaitList waits until the poison of a page that was on nobody's list is listed,
// where that is to be expected: a read may have run into it just now, and what is not
// listed no write clears. A repair waits for all of its pages together no longer than
// for one.
func (r *repair) awaitList(m *mend) {
	if !r.damage.isUnsure(m.page) || r.file.below.Device() == nil {
		return
	}
	if r.patience.IsZero() {
		r.patience = time.Now().Add(listPatience)
	}
	for r.file.below.Corroborate(m.page) == media.Clear && time.Now().Before(r.patience) {
		time.Sleep(listInterval)
	}
}
