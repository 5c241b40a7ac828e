package soak

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// The shared files are lines that tell what they are: file, place, generation,
// checksum. The sectors belong by turns to two writers, so that each page has
// both; readers want every line to be whole and never older than seen before, or
// zero. Poison comes while all that goes on, and in part drops the page cache.
const (
	sharedDir   = "shared"
	sharedFiles = 2
	sharedSize  = 96 * ranges.PageSize
	line        = ranges.LineSize
	perSector   = ranges.SectorSize / line
)

func sharedName(n int) string { return sharedDir + "/s" + strconv.Itoa(n) }

// record is the content of a line.
func record(file int, at int64, generation uint64) []byte {
	b := make([]byte, line)
	copy(b, noise[(uint64(at)*131+generation*64+uint64(file))%(1<<20):])
	b[0] = byte(1 + file)
	binary.LittleEndian.PutUint32(b[1:], uint32(at))
	binary.LittleEndian.PutUint64(b[5:], generation)
	binary.LittleEndian.PutUint32(b[line-4:], crc32.ChecksumIEEE(b[:line-4])|1)
	return b
}

// generationOf is which generation a line is; ok is false if it is no record of
// that place. Zeros are generation 0.
func generationOf(b []byte, file int, at int64) (generation uint64, ok bool) {
	if isZero(b) {
		return 0, true
	}
	generation = binary.LittleEndian.Uint64(b[5:])
	return generation, string(b) == string(record(file, at, generation))
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// sharer is a writer or a reader of the shared files.
type sharer struct {
	place
	world  *world
	random *rand.Rand
	writes bool
	mine   int64 // sectors of this parity
	seen   [sharedFiles][sharedSize / line]uint64
	next   uint64 // generation
	doubt  uint64 // the generation that was being written in a kill
	killed bool
	done   int
}

func newSharer(p place) (*sharer, error) {
	w, err := newWorld(p.At)
	if err != nil {
		return nil, err
	}
	s := &sharer{place: p, world: w, random: rand.New(rand.NewPCG(p.Seed, p.Worker)), next: 1 << 20}
	s.writes = strings.HasPrefix(p.Rel, "shared-writer")
	s.mine = int64(p.Worker) & 1
	if !s.writes {
		return s, nil
	}
	for file := range sharedFiles { // the generation that fillShared wrote
		for at := range s.seen[file] {
			s.seen[file][at] = 1
		}
	}
	return s, nil
}

// fillShared writes generation 1.
func fillShared(root string) error {
	if err := os.Mkdir(filepath.Join(root, sharedDir), 0o755); err != nil {
		return err
	}
	for file := range sharedFiles {
		var all []byte
		for at := range int64(sharedSize / line) {
			all = append(all, record(file, at, 1)...)
		}
		if err := os.WriteFile(filepath.Join(root, sharedName(file)), all, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *sharer) run(n int) error {
	for range n {
		s.done++
		var err error
		if s.writes && s.random.IntN(3) > 0 {
			err = s.writeSome()
		} else {
			err = s.readSome()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSome writes some lines of a sector of its own.
func (s *sharer) writeSome() error {
	file := s.random.IntN(sharedFiles)
	sector := 2*s.random.Int64N(sharedSize/ranges.SectorSize/2) + s.mine
	first := sector*perSector + s.random.Int64N(perSector)
	n := 1 + s.random.Int64N((sector+1)*perSector-first)
	s.next++
	var data []byte
	for at := first; at < first+n; at++ {
		data = append(data, record(file, at, s.next)...)
	}
	o := op{Verb: write, Name: sharedName(file), Range: ranges.Range{Off: first * line, Len: n * line}}
	if err := s.put(o, data); err != nil {
		if s.isKilled(err) {
			s.doubt = s.next
			return errDied
		}
		return fmt.Errorf("writing %s %v: %w", o.Name, o.Range, err)
	}
	for at := first; at < first+n; at++ {
		s.seen[file][at] = s.next
	}
	return nil
}

// put writes, or stores through a mapping.
func (s *sharer) put(o op, data []byte) error {
	fd, err := s.world.fd(o.Name)
	if err != nil {
		return err
	}
	if s.random.IntN(3) > 0 {
		n, err := unix.Pwrite(fd, data, o.Range.Off)
		if err == nil && n != len(data) {
			return fmt.Errorf("%d of %d bytes: %w", n, len(data), errShort)
		}
		return err
	}
	return storeBytes(fd, o.Range, data)
}

// readSome reads lines, whole, and wants each to be a record not older than it was.
func (s *sharer) readSome() error {
	file := s.random.IntN(sharedFiles)
	first := s.random.Int64N(sharedSize / line)
	n := 1 + s.random.Int64N(min(600, sharedSize/line-first))
	o := op{Verb: []string{read, read, directRead, mapRead}[s.random.IntN(4)], Name: sharedName(file), Range: ranges.Range{Off: first * line, Len: n * line}}
	if o.Verb == directRead {
		o.Range = o.Range.Widen(ranges.PageSize)
	}
	var err error
	for try := range 60 {
		got := s.world.perform(o)
		switch {
		case s.isKilled(got.err), s.isKilling() && got.n < o.Range.Len:
			return errDied
		case got.err != nil || got.n != o.Range.Len:
			return fmt.Errorf("%v: %d bytes, %w", o, got.n, orNil(got.err))
		}
		if err = s.judge(file, o.Range.Off/line, got.data); err == nil {
			return nil
		}
		if errors.Is(err, errOwn) {
			break
		}
		// Others' lines may be seen while they are written, and in the page cache
		// before they are below.
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
	return fmt.Errorf("%v: %w; %s", o, err, s.later(file, o.Range.Widen(ranges.PageSize)))
}

// later tells whether what was wrong is so below and in the page cache, now and
// after a while.
func (s *sharer) later(file int, r ranges.Range) string {
	text := ""
	for _, wait := range []time.Duration{0, 2 * time.Second} {
		time.Sleep(wait)
		for _, verb := range []string{read, directRead} {
			got := s.world.perform(op{Verb: verb, Name: sharedName(file), Range: r})
			text += fmt.Sprintf("%s %v later: %v, %v; ", verb, wait, got.err, s.judge(file, r.Off/line, got.data))
		}
	}
	return text
}

// errOwn is a wrong line that only this process writes.
var errOwn = errors.New("which is its own")

func (s *sharer) judge(file int, first int64, data []byte) error {
	for i := range int64(len(data)) / line {
		at := first + i
		generation, ok := generationOf(data[i*line:(i+1)*line], file, at)
		if !ok {
			return fmt.Errorf("line %d (at %d) is no record of it: %x", at, at*line, data[i*line:(i+1)*line])
		}
		if generation == 0 || s.doubt != 0 && generation == s.doubt {
			continue
		}
		if s.owns(at) {
			if generation != s.seen[file][at] {
				return fmt.Errorf("line %d (at %d), %w, is of generation %d, want %d", at, at*line, errOwn, generation, s.seen[file][at])
			}
			continue
		}
		// Writers count alike; what was seen once, was written.
		if generation < s.seen[file][at] {
			return fmt.Errorf("line %d (at %d) is of generation %d again, and was %d", at, at*line, generation, s.seen[file][at])
		}
		s.seen[file][at] = generation
	}
	return nil
}

func (s *sharer) owns(at int64) bool { return s.writes && at/perSector%2 == s.mine }

func (s *sharer) pause() error {
	s.world.closeAll()
	return nil
}

// restarted forgets what others had seen in the page cache and was not below yet.
func (s *sharer) restarted(killed bool) error {
	if !killed {
		return nil
	}
	s.killed = true
	for file := range s.seen {
		for at := range s.seen[file] {
			if !s.owns(int64(at)) {
				s.seen[file][at] = 0
			}
		}
	}
	return nil
}

// checkAll wants each line to be a record, not in the ledger, or zero and there.
func (s *sharer) checkAll() error {
	for file := range sharedFiles {
		got := s.world.perform(op{Verb: directRead, Name: sharedName(file), Range: ranges.Range{Len: sharedSize}})
		if got.err != nil || got.n != sharedSize {
			return fmt.Errorf("%s: %d bytes, %w", sharedName(file), got.n, orNil(got.err))
		}
		rows, err := control.Dial(s.State).Lost(context.Background(), control.LostQuery{Path: sharedName(file)})
		if err != nil {
			return err
		}
		if err := s.settle(file, got.data, rows); err != nil {
			return fmt.Errorf("%s: %w", sharedName(file), err)
		}
	}
	return nil
}

func (s *sharer) settle(file int, data []byte, rows []ledger.Row) error {
	if err := s.judge(file, 0, data); err != nil {
		return err
	}
	l := liveOf(rows)
	for at := range int64(sharedSize / line) {
		r := ranges.Range{Off: at * line, Len: line}
		b := data[r.Off:r.End()]
		switch {
		case isZero(b) && !l.all.Contains(r):
			return fmt.Errorf("%v is zero, and the ledger does not have it", r)
		case hasContent(b, r, l.lost), hasContent(b, r, l.all) && !s.killed:
			return fmt.Errorf("%v is in the ledger, and has content", r)
		case isZero(b) || !s.owns(at):
			continue
		}
		if generation, _ := generationOf(b, file, at); generation == s.doubt {
			s.seen[file][at] = generation // it happened
		}
	}
	return nil
}

// hasContent reports whether a byte of b, which is at r, is not zero and in the
// ledger. Zeros that a mapping wrote back beside others are there, rightly.
func hasContent(b []byte, r ranges.Range, ledger *ranges.Set) bool {
	for of := range ledger.Within(r) {
		if !isZero(b[of.Off-r.Off : of.End()-r.Off]) {
			return true
		}
	}
	return false
}

func (s *sharer) checkBelow(string) error { return nil } // soakMount.checkShared

func (s *sharer) account() account { return account{Ops: s.done} }

func (s *sharer) report(err error) string {
	return fmt.Sprintf("%s, %s: %v", s.Profile, s.Rel, err)
}
