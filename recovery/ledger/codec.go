package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// record is a value of the store being written.
type record []byte

func (r *record) uint(v uint64)   { *r = binary.AppendUvarint(*r, v) }
func (r *record) int(v int64)     { *r = binary.AppendVarint(*r, v) }
func (r *record) string(s string) { r.uint(uint64(len(s))); *r = append(*r, s...) }

// seal is the finished value: the record and the checksum of key and record.
func (r *record) seal(key []byte) []byte {
	return binary.BigEndian.AppendUint32(*r, checksum(key, *r))
}

func checksum(key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // made once by the library
	return crc32.Update(crc32.Checksum(key, table), table, value)
}

// hash is what a record adds to the sum over all records of its kind. A sum tells
// records that are right by themselves but of another time, as in a page that
// the disk failed to write. It is FNV-1a: a CRC would not do, since those of two
// records that changed alike cancel out.
func hash(key, value []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, part := range [][]byte{key, value} {
		for _, b := range part {
			h = (h ^ uint64(b)) * 1099511628211
		}
	}
	return h
}

// fields is a value of the store being read. After the first thing that is not
// as it should be, err is set and everything else reads as zero.
type fields struct {
	rest []byte
	err  error
}

var errShort = errors.New("the record is too short")

// unseal checks the value of key and gives its fields.
func unseal(key, value []byte) fields {
	n := len(value) - 4
	if n < 0 {
		return fields{err: errShort}
	}
	if binary.BigEndian.Uint32(value[n:]) != checksum(key, value[:n]) {
		return fields{err: errors.New("the checksum of the record is wrong")}
	}
	return fields{rest: value[:n]}
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.rest)
	return f.varint(n, v)
}

func (f *fields) int() int64 {
	v, n := binary.Varint(f.rest)
	return int64(f.varint(n, uint64(v)))
}

func (f *fields) varint(n int, v uint64) uint64 {
	if n <= 0 {
		f.fail(errShort)
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *fields) string() string {
	n := f.uint()
	if n > uint64(len(f.rest)) {
		f.fail(errShort)
		return ""
	}
	s := string(f.rest[:n])
	f.rest = f.rest[n:]
	return s
}

func (f *fields) fail(err error) {
	if f.err == nil {
		f.err, f.rest = err, nil
	}
}

// end is the verdict over the whole record.
func (f *fields) end() error {
	if f.err == nil && len(f.rest) > 0 {
		return errors.New("the record is too long")
	}
	return f.err
}

var stateCode = map[State]uint64{Lost: 'l', Reinitialized: 'r', Overwritten: 'o', Healed: 'h'}

func stateOf(code uint64) (State, error) {
	switch code {
	case 'l':
		return Lost, nil
	case 'r':
		return Reinitialized, nil
	case 'o':
		return Overwritten, nil
	case 'h':
		return Healed, nil
	}
	return "", fmt.Errorf("no state has the code %d", code)
}

// rowPrefix is what the keys of all rows of a file, and of no other, start with.
func rowPrefix(file string) []byte { return append([]byte(file), 0) }

func rowKey(file string, off int64) []byte {
	return binary.BigEndian.AppendUint64(rowPrefix(file), uint64(off))
}

func historyKey(file string, off int64, id uint64) []byte {
	return binary.BigEndian.AppendUint64(rowKey(file, off), id)
}

func intentKey(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// fileRecord is what the store has of a file besides its rows.
type fileRecord struct {
	id               fileid.ID
	path             string
	live, past       int
	liveSum, pastSum uint64 // of the file's rows and its history
}

func (r fileRecord) encode(key []byte) []byte {
	var out record
	out.id(r.id)
	out.string(r.path)
	out.uint(uint64(r.live))
	out.uint(uint64(r.past))
	out.uint(r.liveSum)
	out.uint(r.pastSum)
	return out.seal(key)
}

func decodeFile(version uint64, key, value []byte) (fileRecord, error) {
	f := unseal(key, value)
	r := fileRecord{id: f.id(), path: f.string(), live: int(f.uint()), past: int(f.uint())}
	if version >= 2 {
		r.liveSum, r.pastSum = f.uint(), f.uint()
	}
	if r.id.Key() != string(key) {
		f.fail(errors.New("key and file differ"))
	}
	return r, f.end()
}

func encodeRow(key []byte, w row) []byte {
	r := make(record, 0, 64)
	r.uint(w.id)
	r.uint(uint64(w.length))
	r.uint(stateCode[w.what.state])
	r.string(w.what.cause)
	r.string(w.what.source)
	r.uint(uint64(w.what.granularity))
	r.int(w.first)
	r.int(w.changed)
	return r.seal(key)
}

// decodeRow reads a row or history value; its key has the file's prefix and
// tells the offset.
func decodeRow(key []byte, prefix int, value []byte) (off int64, w row, k kind, err error) {
	f := unseal(key, value)
	if len(key) < prefix+8 {
		f.fail(errors.New("the key is too short"))
		return 0, row{}, kind{}, f.err
	}
	off = int64(binary.BigEndian.Uint64(key[prefix:]))
	w.id = f.uint()
	w.length = int64(f.uint())
	state, err := stateOf(f.uint())
	if err != nil {
		f.fail(err)
	}
	k = kind{state: state, cause: f.string(), source: f.string(), granularity: int64(f.uint())}
	w.first = f.int()
	w.changed = f.int()
	if off < 0 || w.length <= 0 || off > math.MaxInt64-w.length {
		f.fail(fmt.Errorf("%v is no range of a file", ranges.Range{Off: off, Len: w.length}))
	}
	return off, w, k, f.end()
}

func (r *record) id(id fileid.ID) {
	r.int(int64(id.Ino))
	r.int(id.Btime)
	r.string(id.Handle)
}

func (f *fields) id() fileid.ID {
	return fileid.ID{Ino: uint64(f.int()), Btime: f.int(), Handle: f.string()}
}

func fromNs(ns int64) time.Time { return time.Unix(0, ns).UTC() }
