package coherence

import (
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// resident is how many pages of the mapping are in the page cache.
func (w *watcher) resident() (n int) {
	w.t.Helper()
	pages := make([]byte, len(w.m)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&w.m[0])), uintptr(len(w.m)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		w.t.Fatal(errno)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}

// Our own changes leave the page cache alone, whatever is asked meanwhile. (At a new
// size the kernel itself drops all pages, in every mount.)
func TestOwnChangesKeepTheCache(t *testing.T) {
	harness.Need(t, harness.FUSE)
	changes := map[string]func(w *watcher, round int) error{
		"pwrite": func(w *watcher, round int) error {
			_, err := unix.Pwrite(w.fd, []byte("own"), int64(round))
			return err
		},
		"O_DIRECT": func(w *watcher, round int) error {
			fd, err := unix.Open(w.path, unix.O_RDWR|unix.O_DIRECT|unix.O_NOATIME, 0)
			if err != nil {
				return err
			}
			_, err = unix.Pwrite(fd, []byte("own"), int64(round))
			w.m[0]++ // back into the cache
			return errors.Join(err, unix.Close(fd))
		},
		"store":     func(w *watcher, round int) error { w.m[round]++; return unix.Msync(w.m, unix.MS_SYNC) },
		"fallocate": func(w *watcher, _ int) error { return unix.Fallocate(w.fd, 0, 0, most) },
		"utimens": func(w *watcher, round int) error {
			return unix.Futimes(w.fd, []unix.Timeval{{Sec: int64(round)}, {Sec: int64(round)}})
		},
		"chmod": func(w *watcher, round int) error { return unix.Fchmod(w.fd, 0o600+uint32(round%2)*0o44) },
		"fsync": func(w *watcher, _ int) error { return unix.Fsync(w.fd) },
	}
	for _, place := range []string{"beside", "over"} {
		m := harness.New(t, harness.Config{Over: place == "over"})
		for name, change := range changes {
			t.Run(place+", "+name, func(t *testing.T) {
				data := harness.Pattern(1, most)
				harness.WriteFile(t, m.Path(name), data)
				w := watch(t, m.Path(name))
				w.sees("mmap", data, occasions["stat"])
				for round := range 100 {
					if err := change(w, round); err != nil {
						t.Fatal(err)
					}
					for _, occasion := range occasions {
						if err := occasion(w); err != nil {
							t.Fatal(err)
						}
					}
					if n := w.resident(); n < most/page {
						t.Fatalf("after change %d only %d of %d pages are cached", round, n, most/page)
					}
				}
			})
		}
	}
}

// A file that somebody has open for writing stays cached when others open it to read it,
// though with relatime their reads should move its access time: a page that is dropped
// as a write(2) of it sets out may come back old, and the writer would not read what it wrote.
func TestOpensKeepWhatIsWritten(t *testing.T) {
	harness.Need(t, harness.FUSE)
	m := harness.New(t, harness.Config{})
	data := harness.Pattern(1, most)
	harness.WriteFile(t, m.Path("f"), data)
	w := watch(t, m.Path("f"))
	w.sees("mmap", data, occasions["stat"])
	for round := range 100 {
		if _, err := unix.Pwrite(w.fd, []byte("own"), int64(round)); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(w.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		n := w.resident()
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		if n < most/page {
			t.Fatalf("after open %d only %d of %d pages are cached", round, n, most/page)
		}
	}
}
