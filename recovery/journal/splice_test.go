package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// versionsOf are the bytes of one journal at several times, compacted in
// between, so that the same places held other records. The last was shut down.
func versionsOf(t testing.TB, seed uint64) (files [][]byte, whole string) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	d := newMemDisk(seed)
	j, err := open(d, testPath, testFS)
	must(t, err)
	j.compactAt = 8 << 10
	keep := func() { files = append(files, bytes.Clone(d.names[testPath].cache[:j.tail])) }
	for range 6 {
		for range 8 {
			in := full()
			in.Path = fmt.Sprint("file ", rnd.IntN(100))
			must(t, j.Begin(in))
			file := fileid.ID{Ino: 1 + rnd.Uint64N(3)}
			page := bytes.Repeat([]byte{byte(rnd.IntN(256))}, ranges.PageSize)
			must(t, j.SaveImage(file, "f", Image{Page: rnd.Int64N(4) * ranges.PageSize, Data: page}))
			if rnd.IntN(4) > 0 {
				must(t, j.Close(in.ID))
			}
			if rnd.IntN(3) == 0 {
				must(t, j.DropImages(file.Key(), ranges.Page(rnd.Int64N(4)*ranges.PageSize)))
			}
		}
		keep()
		_, err := j.Checkpoint()
		must(t, err)
		keep()
	}
	whole = textOf(t, j)
	must(t, j.Shutdown())
	keep()
	return files, whole
}

// TestSplicedVersions puts blocks of what the journal's file held before into
// what it holds now, and moves, repeats and zeroes blocks: as it was shut down,
// it is refused or just as it was left. Where the seal is hit together with the
// records before it, nothing tells that from a crash that tore them off.
func TestSplicedVersions(t *testing.T) {
	rounds := rounds(800)
	seed := uint64(time.Now().UnixNano())
	files, whole := versionsOf(t, seed)
	last := files[len(files)-1]
	rnd := rand.New(rand.NewPCG(seed, 1))
	seal := last[len(last)-frameSize:]
	prefixes := map[string]bool{}
	for end := int64(headerSize); end < int64(len(last)); end += framed(binary.LittleEndian.Uint32(last[end+8:])) {
		if text, err := opened(t, last[:end], false); err == nil {
			prefixes[text] = true
		}
	}
	refused := 0
	for range rounds {
		raw := bytes.Clone(last)
		for range 1 + rnd.IntN(3) {
			size := []int{8, 512, 4096, 8192}[rnd.IntN(4)]
			from := files[rnd.IntN(len(files))]
			at := rnd.IntN(len(raw)) &^ (min(size, 512) - 1)
			switch rnd.IntN(4) {
			case 0: // the same place of another time
				copy(raw[at:min(len(raw), at+size)], from[min(at, len(from)):])
			case 1: // another place
				other := rnd.IntN(len(from)) &^ (min(size, 512) - 1)
				copy(raw[at:min(len(raw), at+size)], from[other:])
			case 2:
				clear(raw[at:min(len(raw), at+size)])
			case 3: // out of order
				raw = slices.Concat(raw[:at], raw[min(len(raw), at+size):], raw[at:min(len(raw), at+size)])
			}
		}
		got, err := opened(t, raw, rnd.IntN(2) == 0)
		switch {
		case errors.Is(err, ErrDamaged):
			refused++
		case err != nil:
			t.Fatalf("seed %d: an error of no kind: %v", seed, err)
		case got == whole:
		case bytes.Contains(raw, seal) || !prefixes[got]:
			t.Fatalf("seed %d: gives in silence\n%.1500s\nwant\n%.1500s", seed, got, whole)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused: this is no test")
	}
	t.Logf("%d of %d refused", refused, rounds)
}

// TestHugeNumbers: lengths and counts that a damaged record claims cost no
// memory before they are found to be wrong.
func TestHugeNumbers(t *testing.T) {
	s := newSample(t, false)
	for at := range some(t, (len(s.raw)-headerSize-frameSize)/8) {
		at = headerSize + 8*at
		raw := bytes.Clone(s.raw)
		for _, n := range []uint64{1 << 62, 1<<64 - 1} {
			for i := range 8 {
				raw[at+i] = byte(n >> (8 * i))
			}
			fixed := mended(raw) // with right checksums: it gets to the payload
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := opened(t, fixed, false); err != nil && !errors.Is(err, ErrDamaged) {
				t.Fatalf("offset %d: %v", at, err)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Fatalf("offset %d: %d bytes allocated for a file of %d", at, n, len(fixed))
			}
		}
	}
}
