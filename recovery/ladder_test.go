package recovery

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestRungsBefore519: where no write clears a listed page, its block is made unwritten if
// that leaves it with the file (ext4), and is freed elsewhere. What the page holds then is the same.
func TestRungsBefore519(t *testing.T) {
	for _, onTmpfs := range []bool{false, true} {
		r := newRig(t, "dax-5.18", 4*pg)
		if onTmpfs {
			dir, err := os.MkdirTemp("/dev/shm", "mendfs-")
			r.check(err)
			t.Cleanup(func() { _ = os.RemoveAll(dir) }) // of the test alone
			r.backing = dir
			r.check(os.WriteFile(r.path(), pattern(4*pg), 0o644))
		}
		r.start()
		want := "punched-and-written"
		if r.medium.ZeroRangeKeeps() {
			want = "zeroed-and-written"
		}
		bad := rng(pg+1024, 512)
		r.poison(bad, false)
		r.write(pg+100, []byte("fresh"))
		content := without(pattern(4*pg), bad)
		copy(content[pg+100:], "fresh")
		wantBytes(t, want, r.below(), content)
		if got := r.told(); !strings.Contains(got, fmt.Sprintf("%q", want)) {
			t.Errorf("on tmpfs: %v: no event says %s: %s", onTmpfs, want, got)
		}
		r.stop()
	}
}
