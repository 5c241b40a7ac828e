package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// sample is a small journal, up to its last record, with the text of its state
// after each record that Open can end at.
type sample struct {
	raw    []byte
	states []string // of each prefix of the records
	ends   []int64  // of each prefix in raw
	synced int      // the prefix that a later record calls durable
}

// newSample makes a journal with records of all types. Only a sealed one was
// shut down.
func newSample(t testing.TB, sealed bool) sample {
	d := newMemDisk(1)
	j, err := open(d, testPath, testFS)
	if err != nil {
		t.Fatal(err)
	}
	var s sample
	note := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if s.ends = append(s.ends, j.tail); j.synced > 0 {
			s.synced = len(s.ends) - 2 // what the next record will say
		}
		s.states = append(s.states, textOf(t, j))
	}
	page := bytes.Repeat([]byte("journal "), ranges.PageSize/8)
	a := &Intent{FS: testFS, Path: "a", Range: ranges.Page(4096), Image: page, Lost: []ranges.Range{{Off: 4096, Len: 64}}}
	b := &Intent{FS: testFS, Path: "b", Range: ranges.Range{Off: 0, Len: 8192}, Boot: "boot"}
	note(nil)
	note(j.Begin(a))
	note(j.Begin(b))
	note(j.Punching(b.ID, 77))
	note(j.SaveImage(b.File, "b", Image{Page: 8192, Data: page}))
	note(j.Close(b.ID))
	note(j.Keep(a))
	note(j.SaveImage(b.File, "b", Image{Page: 4096, Data: page, Pending: true}))
	note(j.DropImages(b.File.Key(), ranges.Page(8192)))
	if sealed {
		note(j.Shutdown())
	}
	s.raw = bytes.Clone(d.names[testPath].cache[:j.tail])
	return s
}

func textOf(t testing.TB, j *Journal) string {
	var images []Saved
	for s, err := range j.Images(false) {
		if err != nil && !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		images = append(images, s)
	}
	return dumpOf(j.Intents(), j.Kept(), images)
}

// opened is the state of a journal made of raw.
func opened(t testing.TB, raw []byte, write bool) (string, error) {
	d := newMemDisk(1)
	d.names[testPath] = &memInode{cache: bytes.Clone(raw)}
	j, err := view(d, testPath)
	if write {
		j, err = open(d, testPath, testFS)
	}
	if err != nil {
		return "", err
	}
	return textOf(t, j), nil
}

func TestTruncatedAtEveryByte(t *testing.T) {
	t.Parallel()
	s := newSample(t, false)
	for n := range some(t, len(s.raw)) {
		got, err := opened(t, s.raw[:n:n], true)
		if n < headerSize {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%d bytes of the header: %v", n, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
		prefix := 0
		for i, end := range s.ends {
			if end <= int64(n) {
				prefix = i
			}
		}
		if got != s.states[prefix] {
			t.Fatalf("the first %d bytes hold %d records, and give\n%s\nwant\n%s", n, prefix, got, s.states[prefix])
		}
	}
}

// TestFlippedBits flips one bit of each byte. In a journal that was shut down,
// nothing is lost in silence; in another, at most what no record calls durable.
func TestFlippedBits(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		t.Run(fmt.Sprintf("sealed-%v", sealed), func(t *testing.T) {
			s := newSample(t, sealed)
			whole := s.states[len(s.states)-1]
			t.Parallel()
			for n := range some(t, len(s.raw)) {
				raw := bytes.Clone(s.raw)
				raw[n] ^= 1 << (n / 4 % 8) // n may go by fours
				got, err := opened(t, raw, false)
				switch at := slices.Index(s.states, got); {
				case err != nil && errors.Is(err, ErrDamaged):
				case err != nil:
					t.Fatalf("byte %d: %v", n, err)
				case got == whole:
				case sealed || at < s.synced:
					t.Fatalf("byte %d: gives in silence\n%s\nwant\n%s", n, got, whole)
				}
			}
		})
	}
}

// TestMovedBlocks copies, swaps and zeroes blocks: the state is that of a
// prefix, or the journal is refused.
func TestMovedBlocks(t *testing.T) {
	s := newSample(t, false)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range rounds(2000) {
		raw := bytes.Clone(s.raw)
		size := []int{8, 64, 512, 4096}[rng.IntN(4)]
		a, b := raw[rng.IntN(len(raw)-size)&^7:][:size], raw[rng.IntN(len(raw)-size)&^7:][:size]
		switch old := bytes.Clone(a); rng.IntN(3) {
		case 0:
			copy(a, b)
		case 1:
			copy(a, b)
			copy(b, old)
		case 2:
			clear(a)
		}
		got, err := opened(t, raw, true)
		if err != nil && !errors.Is(err, ErrDamaged) || err == nil && !slices.Contains(s.states, got) {
			t.Fatalf("seed %d: %v\n%s", seed, err, got)
		}
	}
}

// TestRecordOfAnotherJournal: a record is good only in the journal it was
// written for, even if everything else fits.
func TestRecordOfAnotherJournal(t *testing.T) {
	a, b := newSample(t, false), newSample(t, false) // equal but for the journal id
	raw := slices.Concat(a.raw[:headerSize], b.raw[headerSize:])
	got, err := opened(t, raw, false)
	if err != nil || got != a.states[0] {
		t.Fatalf("records of another journal: %v\n%s", err, got)
	}
}

// TestRefused: what Open says of a journal that it can't use, and that it leaves
// it alone.
func TestRefused(t *testing.T) {
	s := newSample(t, true)
	newer := bytes.Clone(s.raw)
	binary.LittleEndian.PutUint32(newer[8:], version+1)
	clear(newer[12:16])
	binary.LittleEndian.PutUint32(newer[12:], checksum(newer[:headerSize]))
	middle := bytes.Clone(s.raw)
	middle[s.ends[1]+frameSize] ^= 1 // of the payload: padding is nobody's
	for _, c := range []struct {
		name string
		raw  []byte
		fs   string
		want error
		off  int64
	}{
		{"another filesystem", s.raw, "other", ErrForeign, 0},
		{"newer version", newer, testFS, ErrVersion, 0},
		{"empty file", nil, testFS, ErrDamaged, 0},
		{"zeros", make([]byte, 2*headerSize), testFS, ErrDamaged, 0},
		{"something else", []byte("SQLite format 3"), testFS, ErrDamaged, 0},
		{"damage in the middle", middle, testFS, ErrDamaged, s.ends[1]},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newMemDisk(1)
			d.names[testPath] = &memInode{cache: bytes.Clone(c.raw)}
			_, err := open(d, testPath, c.fs)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			var damage *DamageError
			if errors.As(err, &damage) && (damage.Off != c.off || damage.Path != testPath) {
				t.Errorf("damage at %d of %s, want %d: %v", damage.Off, damage.Path, c.off, err)
			}
			if d.ops > 0 || !bytes.Equal(d.names[testPath].cache, c.raw) {
				t.Error("the refused journal was changed")
			}
		})
	}
}

// TestDamageInFreshFile: what a compaction copied was durable before it had its
// name, so that no record behind it is needed to prove it.
func TestDamageInFreshFile(t *testing.T) {
	d := newMemDisk(1)
	j, err := open(d, testPath, testFS)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Begin(&Intent{Range: ranges.Page(0)}); err != nil {
		t.Fatal(err)
	}
	d = d.restart() // not shut down: written anew by the next Open
	if _, err := open(d, testPath, testFS); err != nil {
		t.Fatal(err)
	}
	d.names[testPath].cache[headerSize+frameSize] ^= 1
	if _, err := open(d.restart(), testPath, testFS); !errors.Is(err, ErrDamaged) {
		t.Fatalf("damage to the only record of a fresh file: %v", err)
	}
}

// FuzzOpen feeds damaged journals to Open: an error, or a journal that works
// and, once shut down, opens to the same state.
func FuzzOpen(f *testing.F) {
	s := newSample(f, true)
	f.Add(s.raw, uint32(0))
	f.Add(s.raw[:s.ends[3]], uint32(1))
	f.Add(s.raw[:headerSize], uint32(2))
	f.Fuzz(func(t *testing.T, raw []byte, fix uint32) {
		if fix%2 == 1 {
			raw = mended(raw)
		}
		d := newMemDisk(1)
		d.names[testPath] = &memInode{cache: bytes.Clone(raw)}
		j, err := open(d, testPath, testFS)
		if err != nil {
			return
		}
		if err := j.Begin(&Intent{Range: ranges.Page(0)}); err != nil {
			t.Fatal(err)
		}
		want := textOf(t, j)
		if err := j.Shutdown(); err != nil {
			t.Fatal(err)
		}
		again, err := open(d, testPath, testFS)
		if err != nil {
			t.Fatal(err)
		}
		if got := textOf(t, again); got != want {
			t.Fatalf("opened again\n%s\nwant\n%s", got, want)
		}
	})
}

// mended is raw with right checksums and sequence numbers, so that the fuzzer
// gets to the payloads.
func mended(raw []byte) []byte {
	if len(raw) < headerSize {
		return raw
	}
	raw = bytes.Clone(raw)
	copy(raw, fileMagic)
	binary.LittleEndian.PutUint32(raw[8:], version)
	clear(raw[12:16])
	binary.LittleEndian.PutUint32(raw[12:], checksum(raw[:headerSize]))
	id, seq := [16]byte(raw[16:32]), binary.LittleEndian.Uint64(raw[32:])
	for at := headerSize; at+frameSize <= len(raw); seq++ {
		b := raw[at:]
		n := int(binary.LittleEndian.Uint32(b[8:]))
		if n > len(b)-frameSize {
			break
		}
		copy(b, recordMagic)
		binary.LittleEndian.PutUint64(b[16:], seq)
		binary.LittleEndian.PutUint32(b[12:], recordSum(id, b, b[frameSize:frameSize+n]))
		at += int(record{payload: b[:n]}.framed())
	}
	return raw
}
