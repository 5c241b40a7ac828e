package fs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// The engine finds the inode of a file that is in use, and no other.
func TestInodeInUse(t *testing.T) {
	f, dir := unmounted(t, Config{})
	ids := map[string]fileid.ID{}
	for _, name := range []string{"used", "unused"} {
		write(t, filepath.Join(dir, name), "x")
		fd, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		if ids[name], err = fileid.Of(int(fd.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	path, err := unix.Open(filepath.Join(dir, "used"), unix.O_PATH|unix.O_CLOEXEC, 0) // the table's
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := statx(path, &st); err != nil {
		t.Fatal(err)
	}
	n := f.table.enter(path, keyOf(&st), unix.S_IFREG, false)
	defer f.table.forget(n.id, 1)
	defer f.table.release(n)
	if rec := f.inUse(ids["used"]); rec != nil {
		t.Errorf("%p before the engine was asked for any", rec)
	}
	fd, err := unix.Open(filepath.Join(dir, "used"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	want := n.recovery(f.engine, fd)
	if got := f.inUse(ids["used"]); got != want {
		t.Errorf("%p, want %p", got, want)
	}
	if got := f.inUse(ids["unused"]); got != nil {
		t.Errorf("%p for a file that nobody uses", got)
	}
}

// A file that is gone is not taken for the one that has got its inode number: what is
// said of it would be recorded of that.
func TestInodeNumberUsedAgain(t *testing.T) {
	f, dir := unmounted(t, Config{})
	write(t, filepath.Join(dir, "now"), "x")
	fd, err := unix.Open(filepath.Join(dir, "now"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	now, err := fileid.Of(fd)
	if err != nil {
		t.Fatal(err)
	}
	path, err := unix.Open(filepath.Join(dir, "now"), unix.O_PATH|unix.O_CLOEXEC, 0) // the table's
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	if err := statx(path, &st); err != nil {
		t.Fatal(err)
	}
	n := f.table.enter(path, keyOf(&st), unix.S_IFREG, false)
	defer f.table.forget(n.id, 1)
	defer f.table.release(n)
	rec := n.recovery(f.engine, fd)
	gone := now
	gone.Btime--
	if gone.Handle != "" {
		gone.Handle = gone.Handle[:len(gone.Handle)-8] + "01234567"
	}
	if got := f.inUse(gone); got != nil {
		t.Errorf("%p is in use for it", got)
	}
	if err := f.Detected(gone, "gone", recovery.Listed{Pieces: []ranges.Range{{Len: 512}}}); err != nil || rec.Damaged() {
		t.Errorf("damaged: %v, %v", rec.Damaged(), err)
	}
	if err := f.Detected(now, "now", recovery.Listed{Pieces: []ranges.Range{{Len: 512}}}); err != nil || !rec.Damaged() {
		t.Errorf("the file itself is damaged: %v, %v", rec.Damaged(), err)
	}
	f.table.mu.Lock()
	f.table.shelve(n)
	shelved := n.fd < 0
	f.table.mu.Unlock()
	if shelved && (f.inUse(now) != rec || f.inUse(gone) != nil) {
		t.Errorf("without its descriptor: %p and %p, want %p and nil", f.inUse(now), f.inUse(gone), rec)
	}
}
