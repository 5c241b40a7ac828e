package coherence

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// most is how long the files of these tests get.
const most = 8 * page

// watcher has a file of the mount open and mapped.
type watcher struct {
	t    *testing.T
	path string
	fd   int
	m    []byte
}

func watch(t *testing.T, path string) *watcher {
	t.Helper()
	w := &watcher{t: t, path: path}
	var err error
	if w.fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if w.m, err = unix.Mmap(w.fd, 0, most, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Munmap(w.m), unix.Close(w.fd)); err != nil {
			t.Error(err)
		}
	})
	return w
}

// views are the ways of looking at the first n bytes of a file.
var views = map[string]func(w *watcher, n int) ([]byte, error){
	"read":     func(w *watcher, n int) ([]byte, error) { return pread(w.fd, n) },
	"mmap":     func(w *watcher, n int) ([]byte, error) { return w.load(n) },
	"O_DIRECT": func(w *watcher, n int) ([]byte, error) { return readOpened(w.path, n, unix.O_DIRECT) },
}

func pread(fd, n int) ([]byte, error) {
	b := make([]byte, n+1) // an end that is too far is noticed
	got, err := unix.Pread(fd, b, 0)
	return b[:max(got, 0)], err
}

// load reads through the mapping.
func (w *watcher) load(n int) (b []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errors.New("SIGBUS")
		}
	}()
	return bytes.Clone(w.m[:n]), nil
}

func readOpened(path string, n, flags int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, err
	}
	b, err := pread(fd, n)
	return b, errors.Join(err, unix.Close(fd))
}

// occasions are what makes mendfs look at a file.
var occasions = map[string]func(w *watcher) error{
	"stat": func(w *watcher) error {
		var st unix.Stat_t
		return unix.Stat(w.path, &st)
	},
	"fstat": func(w *watcher) error {
		var st unix.Stat_t
		return unix.Fstat(w.fd, &st)
	},
	"open": func(w *watcher) error {
		_, err := readOpened(w.path, 1, 0)
		return err
	},
}

// sees waits until a view shows what the file has to be.
func (w *watcher) sees(view string, want []byte, occasion func(*watcher) error) {
	w.t.Helper()
	var got []byte
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := occasion(w); err != nil {
			w.t.Fatal(err)
		}
		if got, err = views[view](w, len(want)); err == nil && bytes.Equal(got, want) {
			return
		}
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	w.t.Errorf("%s: %d bytes, want %d; the first that is wrong is %d; %v", view, len(got), len(want), at, err)
}

// below does something to a file of the backing.
func below(t *testing.T, path string, do func(f *os.File) error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(do(f), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func writeBelow(t *testing.T, path string, data []byte, off int64) {
	t.Helper()
	below(t, path, func(f *os.File) error { _, err := f.WriteAt(data, off); return err })
}

// What others do in the backing is seen by who has the file open and mapped, and
// its pages cached, as soon as mendfs has a look at it.
func TestForeignChanges(t *testing.T) {
	harness.Need(t, harness.FUSE)
	const odd = 3*page - 1000 // the end is in the middle of a page
	first := harness.Pattern(1, odd)
	changes := []struct {
		name string
		do   func(f *os.File) error
		want []byte
	}{
		{"overwrite", func(f *os.File) error { _, err := f.WriteAt([]byte("other"), page+5); return err },
			harness.Lay(first, []byte("other"), page+5)},
		{"append", func(f *os.File) error { _, err := f.WriteAt(harness.Pattern(2, 3*page), odd); return err },
			append(bytes.Clone(first), harness.Pattern(2, 3*page)...)},
		{"append within the last page", func(f *os.File) error { _, err := f.WriteAt([]byte("tail"), odd); return err },
			append(bytes.Clone(first), "tail"...)},
		{"truncate", func(f *os.File) error { return f.Truncate(page + 7) }, first[:page+7]},
		{"truncate and grow again", func(f *os.File) error { return errors.Join(f.Truncate(page+7), f.Truncate(odd)) },
			append(bytes.Clone(first[:page+7]), make([]byte, odd-page-7)...)},
	}
	m := harness.New(t, harness.Config{})
	for _, c := range changes {
		for occasion, look := range occasions {
			for view := range views {
				t.Run(fmt.Sprint(c.name, ", ", occasion, ", ", view), func(t *testing.T) {
					t.Parallel()
					name := t.Name()[len("TestForeignChanges/"):]
					harness.WriteFile(t, m.Path(name), first)
					w := watch(t, m.Path(name))
					for view := range views {
						w.sees(view, first, look)
					}
					below(t, m.Below(name), c.do)
					w.sees(view, c.want, look)
				})
			}
		}
	}
}

// A change by others between two of ours is noticed though ours are all that
// is asked for: the second looks before it writes.
func TestForeignWriteBetweenOurs(t *testing.T) {
	harness.Need(t, harness.FUSE)
	m := harness.New(t, harness.Config{})
	data := harness.Pattern(1, 4*page)
	nothing := func(*watcher) error { return nil }
	ours := map[string]func(w *watcher, data []byte, off int64) error{
		"pwrite": func(w *watcher, data []byte, off int64) error { _, err := unix.Pwrite(w.fd, data, off); return err },
		"store": func(w *watcher, data []byte, off int64) error {
			copy(w.m[off:], data)
			return unix.Msync(w.m, unix.MS_SYNC)
		},
		"truncate": func(w *watcher, _ []byte, _ int64) error {
			return errors.Join(unix.Ftruncate(w.fd, most), unix.Ftruncate(w.fd, 4*page))
		},
		"utimens": func(w *watcher, _ []byte, _ int64) error {
			return unix.Futimes(w.fd, []unix.Timeval{{Sec: 1}, {Sec: 1}})
		},
	}
	for name, change := range ours {
		t.Run(name, func(t *testing.T) {
			harness.WriteFile(t, m.Path(name), data)
			w := watch(t, m.Path(name))
			want := data
			for round := range int64(20) {
				for n, text := range []string{"one", "two"} {
					if err := change(w, []byte(text), round*10); err != nil {
						t.Fatal(err)
					}
					if name == "pwrite" || name == "store" {
						want = harness.Lay(want, []byte(text), round*10)
					}
					if n == 0 {
						w.sees("read", want, nothing)
						writeBelow(t, m.Below(name), []byte("theirs"), 2*page+round*10)
						want = harness.Lay(want, []byte("theirs"), 2*page+round*10)
					}
				}
				w.sees("mmap", want, nothing)
				w.sees("read", want, nothing)
			}
		})
	}
}
