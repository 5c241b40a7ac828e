package fs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// list gives the names in a directory, sorted, by a new open.
func list(t *testing.T, dir string) string {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return relist(t, d)
}

// relist gives the names in an open directory from the beginning.
func relist(t *testing.T, d *os.File) string {
	t.Helper()
	if _, err := d.Seek(0, 0); err != nil { // rewinddir
		t.Fatal(err)
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// TestListingIsKept: names come from the kernel's pages as long as nothing is
// changed through the mount.
func TestListingIsKept(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprint("exclusive ", exclusive), func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: exclusive, NoAtime: true})
			check := func(when, want string) {
				t.Helper()
				if got := list(t, m.mnt); got != want {
					t.Errorf("%s: %q, want %q", when, got, want)
				}
			}
			for _, name := range []string{"a", "b"} {
				write(t, m.path(name), "")
			}
			check("at first", "a b")
			write(t, m.below("c"), "") // the mtime that the kernel knows stays
			check("kept", "a b")
			write(t, m.path("d"), "")
			check("a file is made", "a b c d")
			if err := os.Rename(m.path("d"), m.path("e")); err != nil {
				t.Fatal(err)
			}
			check("renamed", "a b c e")
			if err := os.Remove(m.path("e")); err != nil {
				t.Fatal(err)
			}
			check("removed", "a b c")
		})
	}
}

// TestListingEnds: what others change is seen in time, by new opens and by those who
// have had the directory open all the while.
func TestListingEnds(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: 200 * time.Millisecond})
	write(t, m.below("a"), "")
	d, err := os.Open(m.mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"b", "c", "d"} {
		relist(t, d)
		list(t, m.mnt)
		write(t, m.below(name), "")
		eventually(t, "an open directory shows "+name, func() bool { return strings.Contains(relist(t, d), name) })
		eventually(t, "a new open shows "+name, func() bool { return strings.Contains(list(t, m.mnt), name) })
	}
}

// TestListingTakesNoOldNames: a reader that pauses has names in its buffer (ours) that
// are gone when it goes on. The kernel would put them behind what another reader
// has begun to list anew.
func TestListingTakesNoOldNames(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true, NoAtime: true})
	const files = 500
	for i := range files {
		write(t, m.path(fmt.Sprintf("a-rather-long-file-name-%d", i)), "")
	}
	open := func(dir string) int {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) }) // it was only read
		return fd
	}
	buf := make([]byte, 16<<10)
	part := func(fd int) (some bool) { // all that is in one reply, so that we go on where our buffer is
		t.Helper()
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
	whole, _ := getdents(t, open(m.backing), files+2)
	paused, other := open(m.mnt), open(m.mnt)
	part(paused)
	list(t, m.mnt) // completes what the kernel keeps
	gone := whole[files/2:][:100]
	for _, name := range gone {
		if err := os.Remove(m.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(m.mnt); err != nil { // the kernel learns of the mtime
		t.Fatal(err)
	}
	part(other) // the kernel begins anew, with what there is now
	for part(paused) {
	}
	after, _ := getdents(t, open(m.mnt), files+2)
	for _, name := range after {
		if slices.Contains(gone, name) {
			t.Fatalf("%s was removed, and is listed", name)
		}
	}
	if want := files + 2 - len(gone); len(after) != want {
		t.Errorf("%d names, want %d", len(after), want)
	}
}

// TestListingsDuringChanges: whatever comes and goes, what stays is listed once.
func TestListingsDuringChanges(t *testing.T) {
	for _, kind := range []string{"ext4", "tmpfs"} {
		t.Run(kind, func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, Exclusive: true, FS: kind})
			mkdir(t, m.path("d"))
			var stays []string
			for i := range 400 {
				stays = append(stays, fmt.Sprintf("stays-%d", i))
				write(t, m.path("d/"+stays[i]), "")
			}
			slices.Sort(stays)
			var readers, writers sync.WaitGroup
			done := make(chan struct{})
			for w := range 2 {
				writers.Go(func() { // ends with done
					for i := 0; ; i++ {
						select {
						case <-done:
							return
						default:
						}
						path := m.path(fmt.Sprintf("d/goes-%d-%d", w, i%50))
						if os.Remove(path) != nil {
							_ = os.WriteFile(path, nil, 0o644) // there is room
						}
					}
				})
			}
			for range 3 {
				readers.Go(func() { // ends by itself
					for range 60 {
						names := strings.Fields(list(t, m.path("d")))
						names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "goes") })
						if !slices.Equal(names, stays) {
							t.Errorf("%d names, want %d", len(names), len(stays))
						}
					}
				})
			}
			readers.Wait()
			close(done)
			writers.Wait()
			if got, want := list(t, m.path("d")), list(t, m.below("d")); got != want {
				t.Errorf("in the end\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestListingMovesAtime: a directory whose access time has to move is read.
func TestListingMovesAtime(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour})
	write(t, m.path("a"), "")
	list(t, m.mnt)
	list(t, m.mnt)
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(m.below(""), long, long); err != nil {
		t.Fatal(err)
	}
	list(t, m.mnt)
	var st unix.Stat_t
	if err := unix.Stat(m.below(""), &st); err != nil {
		t.Fatal(err)
	}
	if st.Atim.Sec == long.Unix() {
		t.Error("the access time stays what it was")
	}
}
