package media

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

func TestRealFile(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "file", 3)
	f := opened(t, dir, "file")
	if n, err := f.Pread(make([]byte, page), 3*page-10); n != 10 || err != nil {
		t.Fatalf("read over the end: %d, %v", n, err)
	}
	if n, err := f.Pread(make([]byte, 1), -1); n != 0 || err != unix.EINVAL {
		t.Fatalf("read at -1: %d, %v", n, err)
	}
	if err := f.SetMtime(1234567890123456789); err != nil {
		t.Fatal(err)
	}
	before, err := f.Stat()
	if err != nil || before.Mtime != 1234567890123456789 || before.Size != 3*page {
		t.Fatalf("stat: %+v, %v", before, err)
	}
	if n, err := f.Pwrite([]byte("end"), 9*page, 0); n != 3 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	for _, c := range []struct {
		r    ranges.Range
		hole bool
	}{
		{ranges.Page(0), false},
		{ranges.Page(5 * page), true},
		{ranges.Range{Off: 3 * page, Len: 6 * page}, true},
		{ranges.Range{Off: 3 * page, Len: 6*page + 1}, false},
		{ranges.Page(20 * page), true},
	} {
		if hole, err := f.IsHole(c.r); hole != c.hole || err != nil {
			t.Errorf("hole %v: %v, %v", c.r, hole, err)
		}
	}
	if err := f.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, page, 0); err != nil {
		t.Fatal(err)
	}
	if hole, err := f.IsHole(ranges.Page(0)); !hole || err != nil {
		t.Fatalf("punched: %v, %v", hole, err)
	}
	if err := f.Truncate(10); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(true); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "file")); err != nil || st.Size() != 10 {
		t.Fatalf("truncated: %v, %v", st, err)
	}
}
