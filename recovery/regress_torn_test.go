package recovery

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestTornPages: of the whole pages of one write some were written, two that the
// kernel cleared together are neither old nor new, and one was not come to.
func TestTornPages(t *testing.T) {
	r := newRig(t, "dax", 8*pg)
	s := script(r)
	r.start()
	bad := []ranges.Range{rng(pg, 64), rng(2*pg, 64), rng(4*pg, 64), rng(5*pg, 64), rng(6*pg, 64)}
	for _, b := range bad {
		r.poison(b, false)
	}
	r.read(0, 8*pg)
	fresh := pattern(7 * pg)[pg:]
	s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
		if off == 4*pg {
			_, _ = f.Pwrite(filled(0xde, 2*pg), off, 0)
			panic("the power goes")
		}
		return f.Pwrite(b, off, 0)
	}
	func() {
		defer func() {
			if v := recover(); v != "the power goes" {
				t.Fatal(v)
			}
		}()
		r.write(pg, fresh[:6*pg])
	}()
	s.asBelow()
	ins := r.journal.Intents()
	if len(ins) != 1 || ins[0].Image != nil || len(ins[0].Sums) != len(bad) {
		t.Fatalf("intents: %+v", ins)
	}
	for _, earlier := range []bool{false, true} {
		in := ins[0]
		want, wantSure := []ranges.Range{rng(4*pg, pg), rng(5*pg, pg)}, true
		if earlier {
			in.Sums, want, wantSure = nil, nil, false
		}
		rp := &replay{engine: r.engine, in: &in, file: r.file}
		torn, sure, err := rp.tornPages()
		if err != nil || sure != wantSure || fmt.Sprint(torn) != fmt.Sprint(want) {
			t.Errorf("earlier=%v: torn %v, %v, %v, want %v", earlier, torn, sure, err, want)
		}
	}
	r.crash()
	again, err := journalAgain(r, ins[0].FS)
	r.check(err)
	defer func() { r.check(again.Shutdown()) }()
	if got := again.Intents(); len(got) != 1 || !reflect.DeepEqual(got[0].Sums, ins[0].Sums) {
		t.Errorf("after a crash: %+v", got)
	}
}
