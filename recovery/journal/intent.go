package journal

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// MaxPages is the most pages that an intent without an image may cover.
const MaxPages = 256

// Intent is a repair that is about to be made. What Open finds open, a crash
// left unfinished.
type Intent struct {
	ID           uint64 // given by Begin; unique for the life of the state directory, never reused
	FS           string // filesystem name (fileid.Filesystem)
	File         fileid.ID
	Path         string         // when last seen; any bytes
	Range        ranges.Range   // whole pages; with an image exactly one, without up to MaxPages
	Size         int64          // of the file before the repair
	End          int64          // size that the file must have afterwards
	Mtime, Ctime int64          // before, ns; Ctime as Zeroing has it, if that came later
	RestoreMtime bool           // the repair is not the application's own write
	Boot         string         // /proc/sys/kernel/random/boot_id
	Image        []byte         // nil, or one page: what it shall hold
	Missing      []ranges.Range // bytes of Image that are zero because they could not be had; file offsets
	Lost         []ranges.Range // bytes of Range that are lost and known so when the intent was made
	Overwritten  []ranges.Range // bytes of Range that the application writes anew
	Punched      int64          // 0, or when the page was about to be punched (ns): a hole is then ours
	Time         int64          // when the intent was made, ns
	Sums         []uint32       // CRC32C of what each page of Overwritten shall hold, in order; nil: not known
}

// Intents are copies of the open intents, oldest first.
func (j *Journal) Intents() []Intent {
	j.index.RLock()
	defer j.index.RUnlock()
	return sorted(j.state.open)
}

// Begin gives the intents their IDs and makes them durable. If it fails, no
// repair may be made; the error wraps ErrFull or the errno of the state disk.
func (j *Journal) Begin(ins ...*Intent) error {
	for _, in := range ins {
		if err := in.check(); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var rs []record
	for _, in := range ins {
		in.ID = j.nextID()
		rs = append(rs, in.record(recIntent))
	}
	err := j.durable(rs...)
	if err != nil {
		j.index.Lock()
		defer j.index.Unlock()
		for _, in := range ins {
			j.state.remove(j.state.open, in.ID)
		}
	}
	return err
}

// Punching notes, durably, that the page of the open intent is about to be
// punched: a hole that replay finds there is then ours.
func (j *Journal) Punching(id uint64, now int64) error { return j.noteWrite(id, now) }

// Zeroing is Punching for a page that is about to be cleared past the filesystem, in a
// file that has that ctime: while it has, a page that can be read is as we left it.
func (j *Journal) Zeroing(id uint64, now, ctime int64) error {
	return j.noteWrite(id, now, ctime)
}

// noteWrite is Punching, with what else there is to say.
func (j *Journal) noteWrite(id uint64, now int64, more ...int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.state.open[id]; !ok {
		return fmt.Errorf("journal %s: intent %d: %w", j.path, id, ErrNoIntent)
	}
	var e encoder
	e.uint(id)
	e.int(now)
	for _, v := range more {
		e.int(v)
	}
	return j.durable(record{recPunching, e})
}

// Close closes intents. Until Checkpoint has returned their ids, a power cut may
// open them again: the ledger's list of closed intents is the truth till then.
// They are closed in memory even if an error is returned, which means that the
// journal could not be told; Checkpoint will try again.
func (j *Journal) Close(ids ...uint64) error {
	if len(ids) == 0 {
		return nil
	}
	return j.note(closeRecord(ids))
}

func closeRecord(ids []uint64) record {
	var e encoder
	for _, id := range ids {
		e.uint(id)
	}
	return record{recClose, e}
}

// Keep closes the intent, without its page having been written, and keeps it
// until Drop, for somebody to look at. Durable when it returns. An intent that
// was never begun gets its ID here.
func (j *Journal) Keep(in *Intent) error {
	if err := in.check(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if in.ID == 0 {
		in.ID = j.nextID()
	}
	return j.durable(in.record(recKeep))
}

// Kept are copies of the intents that were kept, oldest first.
func (j *Journal) Kept() []Intent {
	j.index.RLock()
	defer j.index.RUnlock()
	return sorted(j.state.kept)
}

// Drop forgets an intent that was kept.
func (j *Journal) Drop(id uint64) error {
	j.index.RLock()
	_, ok := j.state.kept[id]
	j.index.RUnlock()
	if !ok {
		return fmt.Errorf("journal %s: kept intent %d: %w", j.path, id, ErrNoIntent)
	}
	var e encoder
	e.uint(id)
	return j.note(record{recDrop, e})
}

// nextID gives out an ID. Callers hold mu.
func (j *Journal) nextID() uint64 {
	j.index.Lock()
	defer j.index.Unlock()
	j.state.next++
	return j.state.next - 1
}

func sorted(from map[uint64]stored) []Intent {
	ins := make([]Intent, 0, len(from))
	for _, in := range from {
		ins = append(ins, in.clone())
	}
	slices.SortFunc(ins, func(a, b Intent) int { return cmp.Compare(a.ID, b.ID) })
	return ins
}

func (in Intent) clone() Intent {
	in.Image = bytes.Clone(in.Image)
	in.Sums = slices.Clone(in.Sums)
	in.Missing, in.Lost, in.Overwritten = slices.Clone(in.Missing), slices.Clone(in.Lost), slices.Clone(in.Overwritten)
	return in
}

// check refuses what replay could not use.
func (in *Intent) check() error {
	switch r := in.Range; {
	case r.Empty(), r.Off < 0, r.End() < 0, r != r.Widen(ranges.PageSize), r.Len > MaxPages*ranges.PageSize:
		return fmt.Errorf("journal: intent for %v of %s: not 1 to %d whole pages", r, in.Path, MaxPages)
	case in.Image != nil && (len(in.Image) != ranges.PageSize || r.Len != ranges.PageSize):
		return fmt.Errorf("journal: intent for %v of %s: an image of %d bytes, not of one page", r, in.Path, len(in.Image))
	}
	return nil
}

func (in *Intent) record(typ uint8) record {
	var e encoder
	e.uint(in.ID)
	e.text(in.FS)
	e.file(in.File)
	e.text(in.Path)
	e.rng(in.Range)
	e.int(in.Size)
	e.int(in.End)
	e.int(in.Mtime)
	e.int(in.Ctime)
	e.bool(in.RestoreMtime)
	e.text(in.Boot)
	e.ranges(in.Missing)
	e.ranges(in.Lost)
	e.ranges(in.Overwritten)
	e.int(in.Punched)
	e.int(in.Time)
	e.bytes(in.Image)
	e.sums(in.Sums)
	return record{typ, e}
}

func (d *decoder) intent() Intent {
	in := Intent{
		ID: d.uint(), FS: d.text(), File: d.file(), Path: d.text(), Range: d.rng(),
		Size: d.int(), End: d.int(), Mtime: d.int(), Ctime: d.int(), RestoreMtime: d.bool(), Boot: d.text(),
		Missing: d.ranges(), Lost: d.ranges(), Overwritten: d.ranges(),
		Punched: d.int(), Time: d.int(), Image: bytes.Clone(d.bytes()), Sums: d.sums(),
	}
	if in.ID == 0 || in.ID > maxNumber || in.check() != nil {
		d.faulty = true
	}
	return in
}

// PunchedAt is when the page of the open intent was last about to be written.
func (j *Journal) PunchedAt(id uint64) int64 {
	j.index.RLock()
	defer j.index.RUnlock()
	return j.state.open[id].Punched
}
