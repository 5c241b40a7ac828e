package journal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Checkpoint makes all closes durable, compacts the journal if that is worth
// its while, and returns the ids of closed intents that it has not returned
// before: the ledger may forget them. An id may come again after a restart.
func (j *Journal) Checkpoint() ([]uint64, error) {
	j.checkpoint.Lock()
	defer j.checkpoint.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mend(); err != nil {
		return nil, err
	}
	n := len(j.state.closed) // those closed during the fdatasync come behind
	if err := j.syncTo(j.seq); err != nil {
		return nil, err
	}
	if g := j.garbage(); g > j.compactAt && g > j.tail/2 {
		if err := j.rewrite(); err != nil {
			return nil, fmt.Errorf("journal %s: compacting: %w", j.path, err)
		}
	}
	j.index.Lock()
	defer j.index.Unlock()
	ids := j.state.closed[:n:n]
	j.state.closed = j.state.closed[n:]
	return ids, nil
}

// rewrite writes what is live to a fresh file, which becomes the journal. After
// an error the journal is as it was, except that it is broken if the fresh file
// may have taken its name.
func (j *Journal) rewrite() error {
	j.settle()
	w, err := j.fresh()
	if err != nil {
		return fmt.Errorf("writing a fresh file: %w", diskError(err))
	}
	if err := j.disk.Rename(j.path+".new", j.path); err != nil {
		_ = w.file.Close() // nothing in it is needed
		err = fmt.Errorf("renaming the fresh file: %w", diskError(err))
		j.fail(err)
		return err
	}
	j.index.Lock()
	defer j.index.Unlock()
	if j.file != nil {
		_ = j.file.Close() // everything in it is in the new file
	}
	j.file, j.state, j.head = w.file, w.state, w.head
	j.tail, j.size, j.seq, j.synced = w.tail, w.size, w.head.born, w.head.born
	j.sealed, j.broken = false, nil
	j.cond.Broadcast()
	return nil
}

// freshFile is a journal in the making.
type freshFile struct {
	file  file
	head  header // head.born: the last record so far
	state *state
	buf   []byte // not yet written; it ends at tail
	tail  int64
	size  int64
}

// fresh makes a durable file of what is live, under another name.
func (j *Journal) fresh() (w *freshFile, err error) {
	path := j.path + ".new"
	f, err := j.disk.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), j.disk.Remove(path))
		}
	}()
	w = &freshFile{file: f, head: j.head, state: newState(), tail: headerSize}
	w.head.first, w.head.born, w.head.next = j.seq+1, j.seq, j.state.next
	w.state.next = j.state.next
	// At once, so that a full disk is met before anything was written.
	w.size = blocks(headerSize + j.state.live + j.closedSize() + frameSize) // and a seal
	if err := f.Allocate(0, w.size); err != nil {
		return nil, err
	}
	if err := j.copyLive(w); err != nil {
		return nil, err
	}
	if err := w.flush(); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(w.head.encode(), 0); err != nil {
		return nil, err
	}
	return w, f.Datasync()
}

// copyLive adds to w the records that a scan must find.
func (j *Journal) copyLive(w *freshFile) error {
	for _, id := range slices.Sorted(maps.Keys(j.state.open)) {
		in := j.state.open[id].Intent
		if err := w.add(in.record(recIntent)); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(j.state.kept)) {
		in := j.state.kept[id].Intent
		if err := w.add(in.record(recKeep)); err != nil {
			return err
		}
	}
	for _, at := range j.state.places() {
		r, err := readRecord(j.file, j.path, j.head.id, at.off, int64(at.size))
		if err != nil {
			return err
		}
		if err := w.add(r); err != nil {
			return err
		}
	}
	for ids := range slices.Chunk(j.state.closed, idsPerRecord) {
		if err := w.add(closeRecord(ids)); err != nil {
			return err
		}
	}
	return nil
}

// closedSize is what the closes that are copied take at most.
func (j *Journal) closedSize() int64 {
	n := int64(len(j.state.closed))
	return n*binary.MaxVarintLen64 + (n/idsPerRecord+1)*(frameSize+alignment)
}

// places are those of all images, as they follow each other in the file.
func (s *state) places() []place {
	var all []place
	for _, p := range s.files {
		all = slices.AppendSeq(all, maps.Values(p.at))
	}
	slices.SortFunc(all, func(a, b place) int { return cmp.Compare(a.off, b.off) })
	return all
}

func (w *freshFile) add(r record) error {
	w.buf = appendRecord(w.buf, w.head.id, r, w.head.born+1, w.head.first-1)
	if err := w.state.apply(r, w.tail); err != nil {
		return err
	}
	w.tail += r.framed()
	w.head.born++
	if len(w.buf) < chunk {
		return nil
	}
	return w.flush()
}

func (w *freshFile) flush() error {
	_, err := w.file.WriteAt(w.buf, w.tail-int64(len(w.buf)))
	w.buf = w.buf[:0]
	return err
}
