package recovery

import (
	"errors"
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// onTmpfs is a rig on a filesystem whose files may be as long as files can be. On
// ext4 they are shorter.
func onTmpfs(t *testing.T) (*rig, *scripted) {
	t.Helper()
	r := newRig(t, "dax", 2*pg)
	s := script(r)
	var err error
	if r.backing, err = os.MkdirTemp("/dev/shm", "mendfs-"); err != nil {
		t.Skip("SKIP: no tmpfs: ", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(r.backing) }) // of the test alone
	r.check(os.WriteFile(r.backing+"/file", pattern(2*pg), 0o644))
	return r.start(), s
}

// A file that was as long as a file can be, and is cut, has nothing kept of what was cut
// off: that would be served again when it grows.
func TestCutOfTheLongestFile(t *testing.T) {
	r, _ := onTmpfs(t)
	r.poison(rng(512, 512), false)
	r.reads(without(pattern(2*pg), rng(512, 512)))
	r.check(r.file.Truncate(math.MaxInt64, Caller{}))
	r.check(r.file.Truncate(0, Caller{}))
	r.check(r.file.Truncate(2*pg, Caller{}))
	r.reads(make([]byte, 2*pg))
	lost, reinit := r.live()
	wantSet(t, "lost", lost)
	wantSet(t, "reinitialized", reinit)
}

// TestPoisonAtTheEndOfTheLongestFile: the last page of the longest file has a byte less.
func TestPoisonAtTheEndOfTheLongestFile(t *testing.T) {
	r, s := onTmpfs(t)
	r.check(r.file.Truncate(math.MaxInt64, Caller{}))
	const last = math.MaxInt64 - pg + 1
	r.write(last, filled('x', pg-1))
	bad := rng(last+1024, 512)
	s.pread = func(f media.File, b []byte, off int64) (int, error) {
		if (ranges.Range{Off: off, Len: int64(len(b))}).Overlaps(bad) {
			return 0, unix.EIO
		}
		return f.Pread(b, off)
	}
	var outage *OutageError // what a medium without a list is, that fails while all else is a hole
	if n, err := r.file.Read(make([]byte, pg), last, Caller{}); !errors.As(err, &outage) || outage.Range != rng(last, pg-1) {
		t.Errorf("read: %d, %v", n, err)
	}
}
