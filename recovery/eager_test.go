package recovery

import (
	"fmt"
	"testing"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestKillWhileReinitializing kills the process at each instant of repairs that
// nobody asked for: every byte that could be had is there afterwards, the others are
// zero and recorded, and the next mount begins with clean pages or goes on.
func TestKillWhileReinitializing(t *testing.T) {
	steps := []failpoint.Step{failpoint.IntentDurable, failpoint.PagePunching, failpoint.PagePunched, failpoint.PageCleared,
		failpoint.PagesWritten, failpoint.PagesCutBack, failpoint.PagesDurable, failpoint.IntentClosed}
	lost := []ranges.Range{rng(pg+1024, 512), rng(2*pg, 512), rng(3*pg+512, 512)} // the last in the tail page
	for _, profile := range []string{"dax", "dax-5.18"} {
		for _, s := range steps {
			if (s == failpoint.PagePunched || s == failpoint.PagePunching) && profile != "dax-5.18" {
				continue // the rung is not used there
			}
			t.Run(fmt.Sprintf("%s/%s", profile, s), func(t *testing.T) {
				r := newRig(t, profile, 4*pg-100).start()
				for _, bad := range lost {
					r.poison(bad, false)
				}
				r.listing(lost...)
				if !r.crashAt(s, 1, func() { _ = r.file.Reinitialize() }) {
					t.Fatalf("the repair never came to %s", s)
				}
				r.start()
				want := without(pattern(4*pg-100), lost...)
				r.reads(want)
				r.listing(lost...)
				r.check(r.file.Reinitialize())
				r.reads(want)
				if left := r.sim.List(); len(left) > 0 {
					t.Errorf("poison left: %v", left)
				}
				_, reinit := r.live()
				wantSet(t, string(ledger.Reinitialized), reinit, lost...)
			})
		}
	}
}
