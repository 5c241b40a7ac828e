package journal

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
)

// The functions of this file are called with mu held; those that wait for an
// fdatasync give it up meanwhile.

// durable appends the records and returns when they are on the disk.
func (j *Journal) durable(rs ...record) error {
	if len(rs) == 0 {
		return nil
	}
	if err := j.mend(); err != nil {
		return err
	}
	if err := j.append(rs...); err != nil {
		return err
	}
	return j.syncTo(j.seq)
}

// note applies a record in any case and appends it if that is possible. If not,
// the file lags behind memory, and is rewritten, now or later. It takes mu itself.
func (j *Journal) note(r record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.over != nil {
		return j.over
	}
	err := j.append(r)
	if err == nil {
		j.later()
		return nil
	}
	if j.broken == nil {
		j.fail(err)
	}
	j.index.Lock()
	err = j.state.apply(r, 0)
	j.index.Unlock()
	if err != nil {
		return err
	}
	return j.mend()
}

// append puts the records at the end of the file, and applies them. If it fails
// with nothing written, the journal is as it was; otherwise it is broken.
func (j *Journal) append(rs ...record) error {
	var n int64
	for _, r := range rs {
		if len(r.payload) > maxPayload {
			return fmt.Errorf("journal %s: a record of %d bytes, at most %d: too many ranges", j.path, len(r.payload), maxPayload)
		}
		n += r.framed()
	}
	if rs[0].typ != recSeal { // room for that was always left
		if err := j.reserve(n); err != nil {
			return err
		}
	}
	if j.over != nil {
		return j.over
	}
	if j.broken != nil {
		return j.broken
	}
	buf := make([]byte, 0, n)
	for i, r := range rs {
		buf = appendRecord(buf, j.head.id, r, j.seq+1+uint64(i), j.synced)
	}
	if _, err := j.file.WriteAt(buf, j.tail); err != nil {
		return j.fail(diskError(err))
	}
	j.at.Hit(failpoint.JournalAppended)
	j.index.Lock()
	defer j.index.Unlock()
	for _, r := range rs {
		if err := j.state.apply(r, j.tail); err != nil {
			return j.fail(err)
		}
		j.tail += r.framed()
		j.seq++
		j.sealed = r.typ == recSeal
	}
	return nil
}

// reserve makes room for n bytes at the tail, and a seal. On a full disk what is
// garbage in the journal is room too.
func (j *Journal) reserve(n int64) error {
	err := j.extend(n + frameSize)
	if errors.Is(err, ErrFull) && j.mayGain(n) {
		if j.rewrite() == nil {
			err = j.extend(n + frameSize)
		}
		if err != nil { // not for each of those who are refused
			j.retry = time.Now().Add(retryDelay)
		}
	}
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	return nil
}

// mayGain reports whether a fresh file is worth a try: it would be n bytes shorter, and
// the last try has helped, or was some time ago.
func (j *Journal) mayGain(n int64) bool {
	return j.garbage()-j.closedSize() >= n && !time.Now().Before(j.retry)
}

// extend is reserve without the last resort. It extends by whole chunks only,
// and leaves the last of a full disk to a fresh file.
func (j *Journal) extend(n int64) error {
	need := blocks(j.tail + n - j.size)
	if need <= 0 || j.over != nil || j.broken != nil {
		return nil
	}
	need = max(need, chunk)
	if err := j.file.Allocate(j.size, need); err != nil {
		return diskError(err)
	}
	// Blocks only reserved are marked as written, by a transaction of the
	// filesystem, when a record goes there: with one writer, fdatasync then takes
	// 1.5 to 2.5 times as long (ext4, BenchmarkBegin).
	if _, err := j.file.WriteAt(make([]byte, need), j.size); err != nil {
		return diskError(err)
	}
	j.size += need
	return nil
}

// blocks is n rounded up to what a disk allocates.
func blocks(n int64) int64 { return (n + 4095) &^ 4095 }

func (j *Journal) garbage() int64 { return j.tail - headerSize - j.state.live }

// syncTo returns when the records up to seq are durable. The first who waits
// syncs for all that were appended until then; who comes meanwhile waits for the
// next round, which one of them leads.
func (j *Journal) syncTo(seq uint64) error {
	for j.synced < seq {
		switch {
		case j.over != nil:
			return j.over
		case j.broken != nil:
			return j.broken
		case j.syncing:
			j.cond.Wait()
			continue
		}
		f, upto := j.file, j.seq
		j.syncing = true
		j.mu.Unlock()
		err := f.Datasync()
		j.mu.Lock()
		j.syncing = false
		if err != nil {
			j.fail(diskError(err))
		} else {
			j.synced = upto
			j.at.Hit(failpoint.JournalSynced)
		}
		j.cond.Broadcast()
	}
	return nil
}

// settle waits until no fdatasync and no compaction is under way.
func (j *Journal) settle() {
	for j.syncing || j.compacting {
		j.cond.Wait()
	}
}

// fail marks the file as not to be trusted: after a failed fdatasync the kernel
// may have dropped what it could not write and call the pages clean (since
// Linux 4.13 the error is told once per descriptor; TestFailedSync), and what a
// failed write left behind the tail could be taken for records.
func (j *Journal) fail(err error) error {
	j.broken = fmt.Errorf("journal %s: %w; no repair is begun until the state disk takes records again", j.path, err)
	j.cond.Broadcast()
	return j.broken
}

// mend gives a broken journal a fresh file.
func (j *Journal) mend() error {
	if j.broken != nil {
		j.settle()
	}
	switch {
	case j.over != nil:
		return j.over
	case j.broken == nil:
		return nil
	case time.Now().Before(j.retry):
		return j.broken
	}
	if err := j.rewrite(); err != nil {
		j.retry = time.Now().Add(retryDelay)
		return j.fail(err)
	}
	return nil
}

// later sees to it that what was appended is synced soon.
func (j *Journal) later() {
	if j.flusher != nil {
		return
	}
	j.flusher = time.AfterFunc(flushDelay, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.flusher = nil
		_ = j.syncTo(j.seq) // the error stays in j.broken, and Begin gives it
	})
}

// Sync makes everything durable that was called before.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mend(); err != nil {
		return err
	}
	return j.syncTo(j.seq)
}

// diskError adds ErrFull to what a full disk, or a quota, says.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
