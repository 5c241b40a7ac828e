package recovery

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Neighbours that the application covers whole are written in one call; what the
// medium refuses of it page by page, and a page of which something stays alone.
func TestOverwriteInOneCall(t *testing.T) {
	const refused = -1
	for _, c := range []struct {
		name  string
		takes int64 // bytes of the first call of more than a page
		want  []ranges.Range
	}{
		{"taken", 4 * pg, []ranges.Range{rng(2*pg, 4*pg), rng(6*pg, pg)}},
		{"refused", refused, []ranges.Range{rng(2*pg, 4*pg), rng(2*pg, pg), rng(3*pg, pg), rng(4*pg, pg), rng(5*pg, pg), rng(6*pg, pg)}},
		{"short", 2 * pg, []ranges.Range{rng(2*pg, 4*pg), rng(4*pg, pg), rng(5*pg, pg), rng(6*pg, pg)}},
		{"short in a page", 2*pg + 64, []ranges.Range{rng(2*pg, 4*pg), rng(4*pg, pg), rng(5*pg, pg), rng(6*pg, pg)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, "dax", 8*pg)
			s := script(r)
			r.start()
			for page := int64(2); page <= 6; page++ {
				r.poison(rng(page*pg+1024, 64), false)
			}
			was := r.read(0, 8*pg)
			var calls []ranges.Range
			s.pwrite = func(f media.File, b []byte, off int64) (int, error) {
				at := rng(off, int64(len(b)))
				calls = append(calls, at)
				switch {
				case at.Len <= pg:
				case c.takes == refused:
					return 0, unix.EFAULT
				default:
					b = b[:c.takes]
				}
				return f.Pwrite(b, off, 0)
			}
			fresh := filled(0xab, 4*pg+100)
			r.write(2*pg, fresh)
			s.asBelow()
			if fmt.Sprint(calls) != fmt.Sprint(c.want) {
				t.Errorf("calls %v, want %v", calls, c.want)
			}
			copy(was[2*pg:], fresh)
			wantBytes(t, "the file", r.read(0, 8*pg), was)
			if ins := r.journal.Intents(); len(ins) != 0 {
				t.Errorf("open intents: %+v", ins)
			}
		})
	}
}
