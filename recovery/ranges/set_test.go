package ranges

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// bits is the oracle of a Set: one truth value per byte.
type bits [256]bool

func (b *bits) fill(r Range, v bool) {
	for i := r.Off; i < r.End(); i++ {
		b[i] = v
	}
}

// pieces are the maximal runs of v in r.
func (b *bits) pieces(r Range, v bool) []Range {
	out := []Range{}
	for i := r.Off; i < r.End(); i++ {
		switch last := len(out) - 1; {
		case b[i] != v:
		case last >= 0 && out[last].End() == i:
			out[last].Len++
		default:
			out = append(out, Range{i, 1})
		}
	}
	return out
}

var universe = Range{0, 256}

// compare asks the set everything about all and about r.
func compare(s *Set, b *bits, r Range) error {
	all := b.pieces(universe, true)
	inside, outside := b.pieces(r, true), b.pieces(r, false)
	bytes := int64(0)
	for _, p := range all {
		bytes += p.Len
	}
	for _, c := range []struct {
		name string
		ok   bool
	}{
		{"Slice", slices.Equal(s.Slice(), all)},
		{"All", slices.Equal(slices.Collect(s.All()), all)},
		{"Count", s.Count() == len(all)},
		{"Bytes", s.Bytes() == bytes},
		{"Empty", s.Empty() == (bytes == 0)},
		{"Within", slices.Equal(slices.Collect(s.Within(r)), inside)},
		{"Gaps", slices.Equal(slices.Collect(s.Gaps(r)), outside)},
		{"Overlaps", s.Overlaps(r) == (len(inside) > 0)},
		{"Contains", s.Contains(r) == (len(outside) == 0)},
	} {
		if !c.ok {
			return fmt.Errorf("%s of %v in %v is wrong; the bytes are %v", c.name, r, s, all)
		}
	}
	return nil
}

// FuzzSet takes three bytes per operation: what, where, how long.
func FuzzSet(f *testing.F) {
	f.Add([]byte{0, 10, 10, 0, 20, 10, 1, 15, 3})
	f.Add([]byte{0, 0, 255, 1, 100, 1, 0, 100, 1})
	f.Add([]byte{0, 1, 1, 0, 3, 1, 0, 5, 1, 0, 0, 9, 1, 0, 9})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var s Set
		var b bits
		for ; len(ops) >= 3; ops = ops[3:] {
			r := Range{int64(ops[1]), int64(ops[2])}.Intersect(universe)
			if ops[0]%2 == 0 {
				s.Add(r)
			} else {
				s.Remove(r)
			}
			b.fill(r, ops[0]%2 == 0)
			if err := compare(&s, &b, r); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestSetAgainstBits(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	var s Set
	var b bits
	for i := range 20000 {
		r := Range{random.Int64N(256), random.Int64N(20)}.Intersect(universe)
		add := random.IntN(2) == 0
		if add {
			s.Add(r)
		} else {
			s.Remove(r)
		}
		b.fill(r, add)
		if err := compare(&s, &b, Range{random.Int64N(256), random.Int64N(80)}.Intersect(universe)); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, i, err)
		}
	}
}

func TestSetAtTheEdges(t *testing.T) {
	const top = math.MaxInt64
	s := Of(Range{0, 1}, Range{top - 1, 1})
	s.Add(Between(1, top-1))
	if want := []Range{Between(0, top)}; !slices.Equal(s.Slice(), want) {
		t.Fatalf("%v; want %v", s, want)
	}
	s.Remove(Range{5, 1})
	s.Add(Between(0, top))
	if s.Count() != 1 || s.Bytes() != top {
		t.Fatalf("%v", s)
	}
	s.Remove(Between(0, top))
	if !s.Empty() || s.Bytes() != 0 {
		t.Fatalf("%v", s)
	}
	if text, err := json.Marshal(s.Slice()); err != nil || string(text) != "[]" {
		t.Fatalf("JSON of nothing: %s, %v", text, err)
	}
	if text := Of(Range{3, 1}, Range{1, 1}).String(); text != "{[1 +1) [3 +1)}" {
		t.Fatalf("printed: %s", text)
	}
}

// Walks may be left early, and another may run inside.
func TestSetWalks(t *testing.T) {
	s := Of(Range{0, 1}, Range{2, 1}, Range{4, 1})
	n := 0
	for range s.All() {
		for range s.Within(Range{0, 9}) {
			n++
			break
		}
		for range s.Gaps(Range{0, 9}) {
			n++
			break
		}
	}
	if n != 6 {
		t.Fatalf("%d steps; want 6", n)
	}
}

func BenchmarkSetOverlaps(b *testing.B) {
	var s Set
	for i := range int64(100_000) {
		s.Add(Range{i * 8192, 64})
	}
	b.ReportAllocs()
	for i := range b.N {
		if s.Overlaps(Range{int64(i%100_000)*8192 + 4096, 4096}) {
			b.Fatal("there is nothing")
		}
	}
}
