package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// scanned is what a journal file says.
type scanned struct {
	head   header
	state  *state
	tail   int64 // end of the last good record
	size   int64
	seq    uint64 // of the last good record
	synced uint64 // what the last good record says of those before it
	sealed bool   // the journal was shut down, and nothing lies behind
}

// scan reads the journal in f. It changes nothing.
func scan(f file, path string) (*scanned, error) {
	head, err := readHeader(f, path)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	s := &scanned{head: head, state: newState(), tail: headerSize, size: size, seq: head.first - 1, synced: head.first - 1}
	s.state.next = head.next
	w := &window{f: f, size: size}
	for {
		fr, r, err := w.record(s.tail, head.id)
		if err == nil && fr.seq != s.seq+1 {
			err = errNoRecord
		}
		if errors.Is(err, errNoRecord) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := s.state.apply(r, s.tail); err != nil {
			return nil, &DamageError{Path: path, Off: s.tail, What: err.Error()}
		}
		s.tail += r.framed()
		s.seq, s.synced, s.sealed = fr.seq, fr.synced, r.typ == recSeal && fr.synced == s.seq
	}
	if s.seq < head.born {
		return nil, &DamageError{Path: path, Off: s.tail,
			What: fmt.Sprintf("record %d can't be read, and the file was made with %d", s.seq+1, head.born)}
	}
	torn, err := s.behind(w, path)
	s.sealed = s.sealed && !torn
	return s, err
}

// behind looks at what follows the last good record: nothing, or the torn tail
// of a crash, or a record that proves the next one to have been durable once.
func (s *scanned) behind(w *window, path string) (torn bool, err error) {
	missing := s.seq + 1
	var zeros [4096]byte
	for at := s.tail; at < s.size; at += alignment {
		for at%int64(len(zeros)) == 0 { // preallocated space, skipped fast
			b, err := w.bytes(at, len(zeros))
			if err != nil || !bytes.Equal(b, zeros[:]) {
				break // what follows looks closer, and meets the error again
			}
			at += int64(len(zeros))
		}
		if at >= s.size {
			break
		}
		b, err := w.bytes(at, int(min(alignment, s.size-at)))
		if err != nil {
			return false, err
		}
		if len(b) == alignment && binary.LittleEndian.Uint64(b) == 0 {
			continue
		}
		torn = true
		if len(b) < len(recordMagic) || string(b[:len(recordMagic)]) != recordMagic {
			continue
		}
		if b, err = w.bytes(at, frameSize); errors.Is(err, errNoRecord) {
			break
		}
		if err != nil {
			return false, err
		}
		if fr, ok := parseFrame(b); !ok || fr.seq <= missing || fr.synced < missing || fr.synced >= fr.seq {
			continue
		}
		switch fr, _, err := w.record(at, s.head.id); {
		case err == nil:
			return false, &DamageError{Path: path, Off: s.tail,
				What: fmt.Sprintf("record %d can't be read, and record %d at offset %d says that it was durable", missing, fr.seq, at)}
		case !errors.Is(err, errNoRecord):
			return false, err
		}
	}
	return torn, nil
}

// errNoRecord: there is none at this place, as opposed to: it can't be read.
var errNoRecord = errors.New("no record")

// window reads a file from front to back in large pieces.
type window struct {
	f    io.ReaderAt
	size int64
	at   int64 // of buf in the file
	buf  []byte
}

// bytes is n bytes at off, valid until the next call; errNoRecord if the file
// ends before.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off+int64(n) > w.size {
		return nil, errNoRecord
	}
	if off < w.at || off+int64(n) > w.at+int64(len(w.buf)) {
		want := int(min(max(int64(n), 256<<10), w.size-off))
		w.at, w.buf = off, slices.Grow(w.buf[:0], want)[:want]
		got, err := w.f.ReadAt(w.buf, off)
		w.buf = w.buf[:got]
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("journal: reading at offset %d: %w", off, err)
		}
		if got < n {
			return nil, errNoRecord
		}
	}
	return w.buf[off-w.at:][:n], nil
}

// record is the record at off, its payload valid until the next call.
func (w *window) record(off int64, id [16]byte) (frame, record, error) {
	b, err := w.bytes(off, frameSize)
	if err != nil {
		return frame{}, record{}, err
	}
	fr, ok := parseFrame(b)
	if !ok {
		return frame{}, record{}, errNoRecord
	}
	b, err = w.bytes(off, int(framed(fr.length)))
	if err != nil {
		return frame{}, record{}, err
	}
	r := record{typ: fr.typ, payload: b[frameSize : frameSize+fr.length]}
	if recordSum(id, b, r.payload) != fr.crc {
		return frame{}, record{}, errNoRecord
	}
	return fr, r, nil
}
