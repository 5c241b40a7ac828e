package recovery

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Two stores through a mapping with a few bytes between them that nobody
// wrote: those are lost as before (found by tests/soak, store2).
func TestLostBytesBetweenTwoStoresStayLost(t *testing.T) {
	r := newRig(t, "dax", 2*pg).start()
	r.poison(rng(0, ranges.SectorSize), false)
	r.read(0, pg)
	page := make([]byte, pg) // as the mapping has it: the lost bytes are zero
	copy(page[ranges.SectorSize:], pattern(2 * pg)[ranges.SectorSize:pg])
	for _, at := range []int64{100, 140} {
		for i := range int64(10) {
			page[at+i] = 'x'
		}
	}
	if _, err := r.file.Write(page, 0, true, Caller{}); err != nil {
		t.Fatal(err)
	}
	_, reinit := r.live()
	want := ranges.Of(rng(0, 100), rng(110, 30), rng(150, ranges.SectorSize-150))
	if reinit.String() != want.String() {
		t.Errorf("reinitialized is %v, want %v: bytes that nobody wrote are zero, and in no live row", reinit, want)
	}
}

// The zeros of a copied lost range are on the backing at once; the daemon is
// killed before the ledger was written: no zero without a row (found by tests/soak,
// copy and kill).
func TestCopiedZerosHaveARowAfterACrash(t *testing.T) {
	r := newRig(t, "dax", 2*pg).start()
	bad := rng(512, ranges.SectorSize)
	r.poison(bad, false)
	path := r.backing + "/copy"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	r.check(err)
	defer unix.Close(fd)
	dst := r.engine.Open(r.engine.NewInode(fd), fd)
	if n, err := Copy(dst, 0, r.file, 0, pg, Caller{}); n != pg || err != nil {
		t.Fatal(n, err)
	}
	r.crash()
	r.start()
	id, err := fileid.Of(fd)
	r.check(err)
	got := make([]byte, pg)
	if _, err := unix.Pread(fd, got, 0); err != nil {
		t.Fatal(err)
	}
	lost, reinit, err := r.ledger.Live(id.Key())
	r.check(err)
	if isZero(got[bad.Off:bad.End()]) && !lost.Contains(bad) && !reinit.Contains(bad) {
		t.Errorf("%v of the copy is zero, and after the crash the ledger has only lost %v, reinitialized %v", bad, lost, reinit)
	}
}

// A page of which nothing could be had grows with the file: what it has gained was
// never asked for, and may be bad by now (found by tests/soak, line and kill).
func TestGrownTailPageIsAskedForAgain(t *testing.T) {
	const size = ranges.LineSize // which can be lost without the rest of the page
	r := newRig(t, "line", size).start()
	r.poison(rng(0, 1), false)
	r.read(0, size)
	r.write(3*pg, []byte("behind a hole"))
	r.poison(rng(1984, 1), false)
	wantBytes(t, "the page", r.read(0, pg), make([]byte, pg))
	lost, _ := r.live()
	wantSet(t, "lost", lost, rng(0, size), rng(1984, ranges.LineSize))
}

// What could be had of the page once it had grown stays had.
func TestGrownTailPageIsKept(t *testing.T) {
	const size = ranges.LineSize
	r := newRig(t, "line", size).start()
	r.poison(rng(0, 1), false)
	r.read(0, size)
	r.write(3*pg, []byte("behind a hole"))
	r.read(0, pg)
	r.poison(rng(1984, 1), false)
	for _, when := range []string{"at once", "after a crash"} {
		wantBytes(t, when, r.read(0, pg), make([]byte, pg))
		lost, _ := r.live()
		wantSet(t, when, lost, rng(0, size))
		r.crash()
		r.start()
	}
}
