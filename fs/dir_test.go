package fs

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDirectory reads a large directory in pieces, goes back to places in it,
// and removes entries meanwhile.
func TestDirectory(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	const files = 3000
	for i := range files {
		write(t, m.below(fmt.Sprintf("a-rather-long-file-name-%d", i)), "")
	}
	fd, err := unix.Open(m.mnt, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	all, offs := getdents(t, fd, files+2)
	unique := append([]string(nil), all...)
	sort.Strings(unique)
	if len(all) != files+2 || unique[0] != "." || unique[1] != ".." {
		t.Fatalf("%d entries", len(all))
	}
	for _, at := range []int{0, 1, 17, 1000, 2900, files} { // telldir, seekdir
		if _, err := unix.Seek(fd, offs[at], unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		rest, _ := getdents(t, fd, files)
		if strings.Join(rest, "/") != strings.Join(all[at+1:], "/") {
			t.Errorf("from entry %d on: %d entries, want %d", at, len(rest), len(all)-at-1)
		}
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil { // rewinddir
		t.Fatal(err)
	}
	first, _ := getdents(t, fd, 10)
	gone := all[2000]
	if err := os.Remove(m.below(gone)); err != nil {
		t.Fatal(err)
	}
	rest, _ := getdents(t, fd, files)
	if n := len(first) + len(rest); n < files+1 || n > files+2 {
		t.Errorf("%d entries, with one removed meanwhile", n)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	if again, _ := getdents(t, fd, files+2); len(again) != files+1 {
		t.Errorf("%d entries after rewinddir", len(again))
	}
}

// getdents reads about most entries, and the offsets behind them.
func getdents(t *testing.T, fd, most int) (names []string, offs []int64) {
	t.Helper()
	buf := make([]byte, 2048)
	for len(names) < most {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		d := dirStream{rest: buf[:n]}
		for len(d.rest) > 0 {
			e, size, err := d.peek()
			if err != nil {
				t.Fatal(err)
			}
			d.next(&e, size)
			names, offs = append(names, e.Name), append(offs, int64(e.Off))
		}
	}
	return names, offs
}
