package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// loseSectors makes each page of the file lose a sector.
func (r *rig) loseSectors(pages int) {
	r.t.Helper()
	for n := range int64(pages) {
		r.poison(rng(n*pg+512, 512), false)
	}
	r.read(0, int64(pages)*pg)
}

// ofAll is how many files and rows the ledger has, with history.
func (r *rig) ofAll() (files, rows int) {
	r.t.Helper()
	r.check(r.ledger.Flush())
	for _, err := range r.ledger.All(true) {
		r.check(err)
		rows++
	}
	return len(r.ledger.Files(true)), rows
}

// TestCopiesOverCopiesLeaveNothing: whoever may read a damaged file can copy it over a
// file of his own for ever. The ledger does not grow by it, and its rows are
// of what is there.
func TestCopiesOverCopiesLeaveNothing(t *testing.T) {
	const pages = 8
	r := newRig(t, "dax", pages*pg).start()
	r.loseSectors(pages)
	dst := r.another("copy", nil)
	for range 1000 {
		r.check(dst.Truncate(0, Caller{}))
		if n, err := Copy(dst, 0, r.file, 0, pages*pg, Caller{}); n != pages*pg || err != nil {
			t.Fatalf("copy: %d, %v", n, err)
		}
	}
	if files, rows := r.ofAll(); files != 2 || rows != 2*pages {
		t.Errorf("after 1000 copies to one file: %d files, %d rows, want 2 and %d", files, rows, 2*pages)
	}
	for row, err := range r.ledger.All(false) {
		if r.check(err); row.Cause == ledger.CauseCopied && row.Granularity != 1 {
			t.Errorf("%v has granularity %d: each that whoever copies can choose takes memory for ever", row.Range, row.Granularity)
		}
	}
	if n, err := dst.Write(pattern(pages*pg), 0, false, Caller{}); n != pages*pg || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	if files, rows := r.ofAll(); files != 1 || rows != pages {
		t.Errorf("after data over it: %d files, %d rows, want 1 and %d", files, rows, pages)
	}
}

// TestRemovedCopiesAreSwept: nor does it grow by copies that are removed, though nobody
// asks for what is lost and nothing was cut off before.
func TestRemovedCopiesAreSwept(t *testing.T) {
	const pages, most = 64, 20_000 // rows
	r := newRig(t, "dax", pages*pg).start()
	r.loseSectors(pages)
	if !r.hasHandles() {
		t.Skip("without file handles nobody knows what is gone")
	}
	path := filepath.Join(r.backing, "copy")
	for n := range 500 {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		r.check(err)
		dst := r.engine.Open(r.engine.NewInode(fd), fd)
		if n, err := Copy(dst, 0, r.file, 0, pages*pg, Caller{}); n != pages*pg || err != nil {
			t.Fatalf("copy: %d, %v", n, err)
		}
		r.check(os.Remove(path))
		r.check(unix.Close(fd))
		r.engine.sweeps.all.Wait()
		if rows := r.ledger.Count(); rows > most {
			t.Fatalf("%d rows after %d files that came and went", rows, n+1)
		}
	}
	r.check(r.engine.Sweep()) // what came last
	if files, rows := r.ofAll(); files != 1 || rows != pages {
		t.Errorf("%d files, %d rows, want 1 and %d", files, rows, pages)
	}
}

func (r *rig) hasHandles() bool { return r.ino.damage.Load().id.Handle != "" }

// TestCopyOverOwnLossKeepsItsRecord: zeros copied over bytes that the file itself
// had lost don't take the loss out of the history.
func TestCopyOverOwnLossKeepsItsRecord(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	from, to := rng(512, 512), rng(2*pg+512, 512)
	r.poison(from, false)
	r.poison(to, false)
	r.read(0, 4*pg)
	r.write(0, pattern(64)) // repairs the pages
	r.write(2*pg, pattern(64))
	if n, err := Copy(r.file, 2*pg, r.file, 0, pg, Caller{}); n != pg || err != nil {
		t.Fatalf("copy: %d, %v", n, err)
	}
	lost, reinit := r.live()
	wantSet(t, "lost", lost)
	wantSet(t, "reinitialized", reinit, from, to)
	r.write(2*pg, filled(0xab, pg))
	var past []ranges.Range
	for row, err := range r.ledger.All(true) {
		r.check(err)
		if row.State == ledger.Overwritten {
			past = append(past, row.Range)
		}
	}
	wantSet(t, "history", ranges.Of(past...), to)
}
