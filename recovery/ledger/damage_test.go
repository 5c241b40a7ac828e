package ledger

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// versions are the bytes of one store after each of some transactions, and the
// rows that it had then.
type versions struct {
	files [][]byte
	rows  map[string]int
}

func newVersions(t testing.TB) versions {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	second := int64(0)
	l.now = func() time.Time { second++; return time.Unix(second, 0) }
	v := versions{rows: map[string]int{}}
	keep := func(c Change) {
		if err := l.Commit(c); err != nil {
			t.Fatal(err)
		}
		rows, err := tell(l)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v.files, v.rows[rows] = append(v.files, data), len(v.files)
	}
	var many Change
	for n := range int64(300) {
		many = join(many, lose(n*128, 64))
	}
	keep(many)
	keep(move(6400, 64, Overwritten))
	keep(move(12800, 6400, Reinitialized)) // as many rows as before
	keep(lose(12800, 3200))                // and again
	other := lose(0, 4096)
	other.Lost[0].File = fileid.ID{Ino: 77}
	keep(join(other, Change{Close: []uint64{1, 2}}))
	keep(move(0, 1280, Overwritten))
	keep(lose(0, 640))
	return v
}

// newToggled are versions of a small store, in which pages come to hold the same
// number of rows again and again.
func newToggled(t testing.TB) versions {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := mustOpen(t, path)
	v := versions{rows: map[string]int{}}
	for i := range int64(16) {
		c := lose(i%2*64, 64)
		if i%4 >= 2 {
			c = move(i%2*64, 64, Reinitialized)
		}
		if err := l.Commit(c); err != nil {
			t.Fatal(err)
		}
		rows, err := tell(l)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v.files, v.rows[rows] = append(v.files, data), len(v.files)
	}
	return v
}

// A page that the disk failed to write, alone or with others, is of an earlier
// transaction, and every record in it has a right checksum.
func TestLostWrites(t *testing.T) {
	v := newToggled(t)
	last := v.files[len(v.files)-1]
	path := filepath.Join(t.TempDir(), "bad.db")
	refused := 0
	try := func(data []byte, what string, of ...any) {
		t.Helper()
		writeAll(t, path, data)
		rows, err := tryRows(path)
		_, real := v.rows[rows]
		switch {
		case err != nil && !errors.Is(err, ErrDamaged):
			t.Error(err)
		case err != nil:
			refused++
		case !real:
			t.Errorf("rows that never were: %s; "+what, append([]any{rows}, of...)...)
		}
	}
	for i, old := range v.files {
		for at := 0; at+pageSize <= min(len(old), len(last)); at += pageSize {
			data := bytes.Clone(last)
			copy(data[at:], old[at:at+pageSize])
			try(data, "page %d of version %d", at/pageSize, i)
		}
	}
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range rounds(300) {
		data := bytes.Clone(last)
		for range 2 + rnd.IntN(6) {
			old := v.files[rnd.IntN(len(v.files))]
			at := rnd.IntN(min(len(old), len(data))/pageSize) * pageSize
			copy(data[at:], old[at:at+pageSize])
		}
		try(data, "seed %d", seed)
	}
	if refused == 0 {
		t.Error("nothing was refused: this is no test")
	}
}

// harm is a way to damage a file.
type harm struct {
	name string
	do   func(rnd *rand.Rand, v versions, data []byte) []byte
}

const (
	pageSize   = 4096
	sectorSize = 512
)

// somewhere is a block of data, aligned to its size.
func somewhere(rnd *rand.Rand, data []byte, size int) []byte {
	return data[rnd.IntN(len(data)/size)*size:][:size]
}

func harms() []harm {
	return []harm{
		{"flipped bits", func(rnd *rand.Rand, _ versions, data []byte) []byte {
			for range 1 + rnd.IntN(8) {
				data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
			}
			return data
		}},
		{"cut short", func(rnd *rand.Rand, _ versions, data []byte) []byte { return data[:rnd.IntN(len(data))] }},
		{"zeroed sector", func(rnd *rand.Rand, _ versions, data []byte) []byte {
			clear(somewhere(rnd, data, sectorSize))
			return data
		}},
		{"zeroed page", func(rnd *rand.Rand, _ versions, data []byte) []byte {
			clear(somewhere(rnd, data, pageSize))
			return data
		}},
		{"page written twice", func(rnd *rand.Rand, _ versions, data []byte) []byte {
			copy(somewhere(rnd, data, pageSize), bytes.Clone(somewhere(rnd, data, pageSize)))
			return data
		}},
		{"swapped pages", func(rnd *rand.Rand, _ versions, data []byte) []byte {
			a, b := somewhere(rnd, data, pageSize), somewhere(rnd, data, pageSize)
			was := bytes.Clone(a)
			copy(a, b)
			copy(b, was)
			return data
		}},
		{"page of an older version", older(pageSize)},
		{"sector of an older version", older(sectorSize)},
		{"half a write", func(rnd *rand.Rand, v versions, data []byte) []byte {
			old := v.files[rnd.IntN(len(v.files))]
			return append(bytes.Clone(data[:rnd.IntN(len(data))&^(pageSize-1)]), old[min(len(old), rnd.IntN(len(data))&^(pageSize-1)):]...)
		}},
	}
}

func older(size int) func(rnd *rand.Rand, v versions, data []byte) []byte {
	return func(rnd *rand.Rand, v versions, data []byte) []byte {
		old := v.files[rnd.IntN(len(v.files))]
		for range 1 + rnd.IntN(3) {
			if at := rnd.IntN(len(data)/size) * size; at+size <= len(old) {
				copy(data[at:], old[at:][:size])
			}
		}
		return data
	}
}

// Whatever becomes of the file: an error, or the rows of a transaction. Of
// which one, the store alone can't tell if a meta page was hit: see the package
// comment.
func TestDamage(t *testing.T) {
	rounds := rounds(60)
	v := newVersions(t)
	seed := uint64(time.Now().UnixNano())
	for _, h := range harms() {
		t.Run(h.name, func(t *testing.T) {
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			last := v.files[len(v.files)-1]
			path := filepath.Join(t.TempDir(), "bad.db")
			refused, before := 0, 0
			for range rounds {
				writeAll(t, path, h.do(rnd, v, bytes.Clone(last)))
				rows, err := tryRows(path)
				at, real := v.rows[rows]
				var known *StoreError
				switch {
				case errors.As(err, &known):
					refused++
				case err != nil:
					t.Errorf("an error of no kind: %v", err)
				case !real:
					t.Errorf("rows that never were: %.300s", rows)
				case at < len(v.files)-1:
					before++
				}
			}
			t.Logf("%d of %d refused, %d of an earlier transaction", refused, rounds, before)
		})
	}
}
