package fs

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBackingChanges shows what is seen of changes that do not go through the
// mount: at once by who opens the file, after the timeout by who has it open and
// asks for attributes.
func TestBackingChanges(t *testing.T) {
	const timeout = 300 * time.Millisecond
	m := mountNew(t, serveConfig{Timeout: timeout})
	write(t, m.below("f"), "one")
	if got := read(t, m.path("f")); got != "one" {
		t.Fatal(got)
	}
	write(t, m.below("f"), "two")
	if got := read(t, m.path("f")); got != "two" {
		t.Errorf("opened after a change of the same size: %q", got)
	}

	open, err := os.Open(m.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	buf := make([]byte, 10)
	seen := func() string {
		n, _ := open.ReadAt(buf, 0) // io.EOF
		return string(buf[:n])
	}
	if seen() != "two" {
		t.Error(seen())
	}
	write(t, m.below("f"), "THREE")
	time.Sleep(timeout + 100*time.Millisecond)
	eventually(t, "by the open file, after the timeout, when attributes are asked for", func() bool {
		if _, err := open.Stat(); err != nil {
			t.Fatal(err)
		}
		return seen() == "THREE"
	})

	// A name that the kernel takes for free is made below: open(O_CREAT) finds
	// it, with permissions checked.
	for _, name := range []string{"g", "h"} {
		if _, err := os.Stat(m.path(name)); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		write(t, m.below(name), "made below")
	}
	fd, err := unix.Open(m.path("g"), unix.O_CREAT|unix.O_RDWR, 0o644)
	if err != nil {
		t.Fatalf("open(O_CREAT) of a file made below: %v", err)
	}
	n, err := unix.Pread(fd, buf, 0)
	if err != nil || string(buf[:n]) != "made below" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	unix.Close(fd)
	if said := sh(t, m.mnt, bob, `echo no >h`); !strings.Contains(said, "Permission denied") {
		t.Errorf("another's file was opened for writing: %q", said)
	}
	if _, err := unix.Open(m.path("h"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o644); err != unix.EEXIST {
		t.Errorf("O_EXCL: %v", err)
	}

	if err := os.Remove(m.below("f")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(timeout + 100*time.Millisecond)
	if _, err := os.Stat(m.path("f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed below: %v", err)
	}
}

// TestInvalidate: with an exclusive mount pages stay until they are
// invalidated.
func TestInvalidate(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true})
	write(t, m.below("f"), strings.Repeat("1", 8192))
	first := read(t, m.path("f"))
	f, err := os.OpenFile(m.below("f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("2", 8192)), 0); err != nil {
		t.Fatal(err)
	}
	if got := read(t, m.path("f")); got != first {
		t.Fatal("the page cache was not kept over an open")
	}
	var st unix.Stat_t
	if err := unix.Stat(m.below("f"), &st); err != nil {
		t.Fatal(err)
	}
	if said := m.ask("invalidate %d 4096 4096", st.Ino); said != "ok" {
		t.Fatal(said)
	}
	if got, want := read(t, m.path("f")), first[:4096]+strings.Repeat("2", 4096); got != want {
		t.Error("not exactly the invalidated page was read anew")
	}
	if said := m.ask("invalidate %d 0 4096", 987654321); said != "ok" {
		t.Errorf("an inode that the kernel does not know: %s", said)
	}
}

func TestMmap(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	write(t, m.path("f"), strings.Repeat("a", 10000))
	f, err := os.OpenFile(m.path("f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	f.Close() // writeback finds a handle all the same
	copy(mem[5000:], "written through a mapping")
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		t.Error(err)
	}
	if got := read(t, m.below("f")); got[5000:5025] != "written through a mapping" || len(got) != 10000 {
		t.Errorf("below: %d bytes, %q", len(got), got[5000:5025])
	}
	if err := unix.Munmap(mem); err != nil {
		t.Error(err)
	}

	// A mapping of a file that is open O_DIRECT writes parts of blocks back.
	fd, err := unix.Open(m.path("f"), unix.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mem, err = unix.Mmap(fd, 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	mem[9999] = 'z'
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		t.Error(err)
	}
	if got := read(t, m.below("f")); len(got) != 10000 || got[9999] != 'z' {
		t.Error("the page was not written back")
	}
	if err := unix.Munmap(mem); err != nil {
		t.Error(err)
	}
}
