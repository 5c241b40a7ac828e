package coherence

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// A page is dropped from the cache while a write of a part of it waits for the
// backing, and read again at once: the read must not bring back what was there before,
// which a store beside it would write back. With strictatime each open drops all pages.
func TestDroppedWhileWritten(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	b := harness.NewBadMedia(t)
	m := harness.New(t, harness.Config{Backing: b.At, Flags: []string{"-o", "strictatime"}})
	want := harness.Pattern(1, most)
	harness.WriteFile(t, m.Path("f"), want)
	w := watch(t, m.Path("f"))
	for round := range 20 {
		w.sees("mmap", want, occasions["fstat"])
		data := harness.Pattern(uint64(2+round), line)
		done := make(chan error, 2) // each ends with the hang
		b.Hang("f")
		go func() { _, err := unix.Pwrite(w.fd, data, 5*line); done <- err }()
		time.Sleep(20 * time.Millisecond) // for it to wait, most likely
		fd, err := unix.Open(w.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, err := unix.Pread(fd, make([]byte, line), 0); done <- err }()
		time.Sleep(20 * time.Millisecond)
		b.GoOn()
		if err := errors.Join(<-done, <-done, unix.Close(fd)); err != nil {
			t.Fatal(err)
		}
		want = harness.Lay(want, data, 5*line)
		if got, err := pread(w.fd, most); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: what was written is not what is read: %v", round, err)
		}
		copy(w.m, "beside")
		want = harness.Lay(want, []byte("beside"), 0)
		if err := unix.Msync(w.m, unix.MS_SYNC); err != nil {
			t.Fatal(err)
		}
		if got, err := readOpened(m.Below("f"), most, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: the backing has something else: %v", round, err)
		}
	}
}
