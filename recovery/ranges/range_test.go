package ranges

import (
	"encoding/json"
	"math"
	"testing"
)

func TestRange(t *testing.T) {
	const top = math.MaxInt64
	a := Range{10, 20}
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"end", a.End(), int64(30)},
		{"between", Between(10, 30), a},
		{"between backwards", Between(30, 10), Range{30, 0}},
		{"page of its first byte", Page(4096), Range{4096, 4096}},
		{"page of its last byte", Page(8191), Range{4096, 4096}},
		{"the last page", Page(top - 1), Between(top-4095, top)},
		{"intersection", a.Intersect(Range{25, 100}), Range{25, 5}},
		{"intersection of neighbours", a.Intersect(Range{30, 1}).Empty(), true},
		{"overlap in one byte", a.Overlaps(Range{29, 1}), true},
		{"overlap of neighbours", a.Overlaps(Range{30, 1}), false},
		{"overlap with the empty range", a.Overlaps(Range{15, 0}), false},
		{"contains itself", a.Contains(a), true},
		{"contains more", a.Contains(Range{10, 21}), false},
		{"contains the empty range anywhere", a.Contains(Range{99, 0}), true},
		{"the empty range contains a byte", Range{10, 0}.Contains(Range{10, 1}), false},
		{"widened", a.Widen(64), Range{0, 64}},
		{"widened over a border", Range{63, 2}.Widen(64), Range{0, 128}},
		{"aligned stays", Range{64, 64}.Widen(64), Range{64, 64}},
		{"empty stays", Range{63, 0}.Widen(64), Range{63, 0}},
		{"widened at the top", Range{top - 10, 10}.Widen(4096), Between(top-4095, top)},
		{"shifted", a.Shift(-10), Range{0, 20}},
		{"printed", a.String(), "[10 +20)"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v; want %v", c.name, c.got, c.want)
		}
	}
	if text, err := json.Marshal(a); err != nil || string(text) != `{"offset":10,"length":20}` {
		t.Errorf("JSON: %s, %v", text, err)
	}
}
