package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	version    = 1
	headerSize = 4096
	frameSize  = 32
	alignment  = 8
	maxPayload = 16 << 20
	maxName    = 1024    // of a filesystem
	maxNumber  = 1 << 62 // of a record or an intent: never reached, and adding to it can't overflow

	fileMagic   = "mendfsJ\n"
	recordMagic = "mfJr"
)

// The types of records.
const (
	recIntent   = 1
	recPunching = 2
	recClose    = 3
	recKeep     = 4
	recDrop     = 5
	recImage    = 6
	recClear    = 7
	recSeal     = 8
)

// header is the start of the file.
type header struct {
	id    [16]byte
	first uint64 // sequence number of the first record
	born  uint64 // of the last record that was there when the file got its name; first-1 if none
	next  uint64 // intent ID
	fs    string
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, fileMagic)
	binary.LittleEndian.PutUint32(b[8:], version)
	copy(b[16:], h.id[:])
	binary.LittleEndian.PutUint64(b[32:], h.first)
	binary.LittleEndian.PutUint64(b[40:], h.born)
	binary.LittleEndian.PutUint64(b[48:], h.next)
	binary.LittleEndian.PutUint16(b[56:], uint16(len(h.fs)))
	copy(b[58:], h.fs)
	binary.LittleEndian.PutUint32(b[12:], checksum(b))
	return b
}

// readHeader reads and checks the header of the journal at path.
func readHeader(f io.ReaderAt, path string) (header, error) {
	damaged := func(what string) error { return &DamageError{Path: path, What: what} }
	b := make([]byte, headerSize)
	switch n, err := f.ReadAt(b, 0); {
	case err != nil && err != io.EOF:
		return header{}, fmt.Errorf("journal: reading the header: %w", err)
	case n < len(b):
		return header{}, damaged("the file is shorter than its header")
	case !bytes.HasPrefix(b, []byte(fileMagic)):
		return header{}, damaged("not a journal of mendfs")
	}
	sum := binary.LittleEndian.Uint32(b[12:])
	clear(b[12:16])
	if checksum(b) != sum {
		return header{}, damaged("wrong checksum of the header")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return header{}, fmt.Errorf("journal %s: %w: it has version %d, this program reads version %d; use the newer mendfs", path, ErrVersion, v, version)
	}
	n := int(binary.LittleEndian.Uint16(b[56:]))
	if n > maxName {
		return header{}, damaged("filesystem name too long")
	}
	h := header{
		first: binary.LittleEndian.Uint64(b[32:]),
		born:  binary.LittleEndian.Uint64(b[40:]),
		next:  binary.LittleEndian.Uint64(b[48:]),
		fs:    string(b[58 : 58+n]),
	}
	copy(h.id[:], b[16:])
	if h.first == 0 || h.first > maxNumber || h.born < h.first-1 || h.born > maxNumber || h.next == 0 || h.next > maxNumber {
		return header{}, damaged("impossible numbers in the header")
	}
	return h, nil
}

// record is a record without its frame.
type record struct {
	typ     uint8
	payload []byte
}

// framed is the number of bytes that the record takes in the file.
func (r record) framed() int64 { return framed(uint32(len(r.payload))) }

func framed(length uint32) int64 {
	return frameSize + (int64(length)+alignment-1)&^(alignment-1)
}

// frame is what stands before a payload in the file.
type frame struct {
	typ    uint8
	length uint32
	crc    uint32
	seq    uint64
	synced uint64
}

// appendRecord appends the record, framed, to b.
func appendRecord(b []byte, id [16]byte, r record, seq, synced uint64) []byte {
	start := len(b)
	b = append(b, recordMagic...)
	b = append(b, r.typ, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.payload)))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, synced)
	sum := recordSum(id, b[start:], r.payload)
	binary.LittleEndian.PutUint32(b[start+12:], sum)
	b = append(b, r.payload...)
	return append(b, make([]byte, r.framed()-int64(len(b)-start))...)
}

// parseFrame reads a frame from the first frameSize bytes of b; it says false
// if they can't be one.
func parseFrame(b []byte) (frame, bool) {
	fr := frame{
		typ:    b[4],
		length: binary.LittleEndian.Uint32(b[8:]),
		crc:    binary.LittleEndian.Uint32(b[12:]),
		seq:    binary.LittleEndian.Uint64(b[16:]),
		synced: binary.LittleEndian.Uint64(b[24:]),
	}
	return fr, string(b[:4]) == recordMagic && fr.length <= maxPayload
}

// checksum is the CRC32C of the parts one after the other.
func checksum(parts ...[]byte) uint32 {
	var sum uint32
	table := crc32.MakeTable(crc32.Castagnoli) // made once, by the library
	for _, p := range parts {
		sum = crc32.Update(sum, table, p)
	}
	return sum
}

func recordSum(id [16]byte, fr, payload []byte) uint32 {
	return checksum(id[:], fr[:12], fr[16:frameSize], payload)
}

// readRecord reads the record of n bytes, framed, at off, and checks it.
func readRecord(f io.ReaderAt, path string, id [16]byte, off, n int64) (record, error) {
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		return record{}, fmt.Errorf("journal: reading the record at offset %d: %w", off, err)
	}
	fr, ok := parseFrame(b)
	if !ok || frameSize+int64(fr.length) > n {
		return record{}, &DamageError{Path: path, Off: off, What: "a record was written over"}
	}
	r := record{typ: fr.typ, payload: b[frameSize : frameSize+fr.length]}
	if recordSum(id, b, r.payload) != fr.crc {
		return record{}, &DamageError{Path: path, Off: off, What: "wrong checksum of a record"}
	}
	return r, nil
}
