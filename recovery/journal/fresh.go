package journal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"maps"
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// liveRecords are what a fresh file gets of a journal: the records that a scan
// must find.
type liveRecords struct {
	intents []record
	images  []imageAt // as they follow each other in the file
	closed  []uint64
}

// live is what is live now. Callers hold mu or index.
func (j *Journal) live() liveRecords {
	live := liveRecords{images: j.state.places(), closed: j.state.closed[:len(j.state.closed):len(j.state.closed)]}
	for _, kind := range []struct {
		typ uint8
		of  map[uint64]stored
	}{{recIntent, j.state.open}, {recKeep, j.state.kept}} {
		for _, id := range slices.Sorted(maps.Keys(kind.of)) {
			in := kind.of[id].Intent
			live.intents = append(live.intents, in.record(kind.typ))
		}
	}
	return live
}

// imageAt is where an image is, and what of.
type imageAt struct {
	place
	file fileid.ID
	page int64
}

// places are those of all images, as they follow each other in the file.
func (s *state) places() []imageAt {
	var all []imageAt
	for _, p := range s.files {
		for page, at := range p.at {
			all = append(all, imageAt{at, p.file, page})
		}
	}
	slices.SortFunc(all, func(a, b imageAt) int { return cmp.Compare(a.off, b.off) })
	return all
}

// closedSize is what the closes that are copied take at most.
func (j *Journal) closedSize() int64 {
	n := int64(len(j.state.closed))
	return n*binary.MaxVarintLen64 + (n/idsPerRecord+1)*(frameSize+alignment)
}

// freshFile is a journal in the making. The journal that it copies from only
// grows meanwhile, so that no lock is needed.
type freshFile struct {
	from   file   // nil if the journal is new
	path   string // of it
	read   *cache // of it
	unread []Unread
	file   file
	head   header // head.born: the last record so far
	state  *state
	buf    []byte // not yet written; it ends at tail
	tail   int64
	size   int64
}

// fresh makes a file under another name, with room for what is live. Its
// records are numbered from first. Callers hold mu.
func (j *Journal) fresh(first uint64) (w *freshFile, err error) {
	path := j.path + ".new"
	f, err := j.disk.Create(path)
	if err != nil {
		return nil, err
	}
	w = &freshFile{from: j.file, path: j.path, read: &j.state.read, file: f, head: j.head, state: newState(), tail: headerSize}
	w.head.first, w.head.born = first, first-1
	w.state.next = j.state.next
	// At once, so that a full disk is met before anything was written.
	w.size = blocks(headerSize + j.state.live + j.closedSize() + frameSize) // and a seal
	if err := f.Allocate(0, w.size); err != nil {
		return nil, errors.Join(err, f.Close(), j.disk.Remove(path))
	}
	return w, nil
}

// copy adds what is live.
func (w *freshFile) copy(live liveRecords) error {
	for _, r := range live.intents {
		if err := w.add(r); err != nil {
			return err
		}
	}
	for _, at := range live.images {
		if err := w.add(w.image(at)); err != nil {
			return err
		}
	}
	for ids := range slices.Chunk(live.closed, idsPerRecord) {
		if err := w.add(closeRecord(ids)); err != nil {
			return err
		}
	}
	return w.flush()
}

// image is the record of an image. The others must not suffer for one that can't be
// read: that there was one is all that is copied of it.
func (w *freshFile) image(at imageAt) record {
	r, err := readRecord(w.from, w.path, w.head.id, at.off, int64(at.size))
	if err == nil {
		return r
	}
	s := Saved{File: at.file, Image: Image{Page: at.page, Pending: at.pending}}
	if im, ok := w.read.get(at.off); ok {
		s.Image = im
	} else {
		w.unread = append(w.unread, Unread{File: at.file, Page: at.page, Pending: at.pending, Err: err})
	}
	return s.record()
}

// follow adds the records that the journal has from one offset to another.
func (w *freshFile) follow(from, to int64) error {
	old := &window{f: w.from, size: to}
	for from < to {
		_, r, err := old.record(from, w.head.id)
		if errors.Is(err, errNoRecord) {
			err = &DamageError{Path: w.path, Off: from, What: "a record that was just written can't be read"}
		}
		if err == nil {
			err = w.add(r)
		}
		if err != nil {
			return err
		}
		from += r.framed()
	}
	return w.flush()
}

func (w *freshFile) add(r record) error {
	if need := w.tail + r.framed() + frameSize - w.size; need > 0 { // and a seal
		need = max(blocks(need), chunk)
		if err := w.file.Allocate(w.size, need); err != nil {
			return err
		}
		w.size += need
	}
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

// finish makes the file whole and durable; next is the intent ID to go on with.
func (w *freshFile) finish(next uint64) error {
	w.head.next, w.state.next = next, next
	if _, err := w.file.WriteAt(w.head.encode(), 0); err != nil {
		return err
	}
	return w.file.Datasync()
}
