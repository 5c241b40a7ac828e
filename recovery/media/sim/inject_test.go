package sim

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

func TestInjectRefuses(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	for _, c := range []struct {
		name   string
		off, n int64
		want   error
	}{
		{"empty", 10, 0, ErrEmpty},
		{"negative length", 10, -1, ErrEmpty},
		{"negative offset", -1, 5, ErrNegative},
		{"overflow", math.MaxInt64 - 1, 5, ErrOverflow},
		{"past the end", 3*page - 1, 2, ErrPastEnd},
		{"behind the end", 4 * page, 1, ErrPastEnd},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := b.m.Inject(b.id, "a\nb", int(b.os.Fd()), ranges.Range{Off: c.off, Len: c.n}, false)
			var typed *RangeError
			if !errors.Is(err, c.want) || !errors.As(err, &typed) {
				t.Fatalf("%v; want %v", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), ranges.Range{Off: c.off, Len: c.n}.String()) {
				t.Fatalf("message %q", err)
			}
			if len(b.m.List()) != 0 {
				t.Fatal("something was injected")
			}
		})
	}
	if _, err := b.m.Inject(b.id, ".", b.m.root, ranges.Range{Len: 1}, false); !errors.Is(err, ErrNotFile) {
		t.Fatalf("a directory: %v", err)
	}
	if _, err := New(Options{Profile: "dax-6"}); err == nil {
		t.Fatal("an unknown profile was taken")
	}
}

func TestRemoveAndClear(t *testing.T) {
	b := newBench(t, DAX, 3*page)
	first := b.inject(page, 200, false)
	second := b.inject(page+128, 200, true)
	b.wantRead(page, page, 0, unix.EIO)
	if err := b.m.Remove(first.ID); err != nil {
		t.Fatal(err)
	}
	if got := b.poisoned(); !reflect.DeepEqual(got, second.Remaining) {
		t.Fatalf("left %v; want %v", got, second.Remaining)
	}
	if err := b.m.Remove(first.ID); !errors.Is(err, ErrNoInjection) {
		t.Fatalf("removing twice: %v", err)
	}
	if err := b.m.Clear(); err != nil {
		t.Fatal(err)
	}
	b.wantRead(0, 3*page, 3*page, nil)
	b.restart(DAX)
	b.wantRead(0, 3*page, 3*page, nil)
}

func TestInjectRandom(t *testing.T) {
	b := newBench(t, DAX, 3*page+10)
	for name, size := range map[string]int{"empty": 0, "small": 1, "one": 64} {
		if err := os.WriteFile(filepath.Join(b.dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	paths := []string{"empty", "file", "one", "small"}
	const lines = 3*64 + 1 + 1 + 1
	strip := func(in []Injection) (out []string) {
		for _, i := range in {
			out = append(out, fmt.Sprint(i.Path, i.Range))
		}
		return out
	}
	var before []string
	for _, seed := range []uint64{7, 7, 8} {
		got, err := b.m.InjectRandom(seed, 20, paths, true)
		if err != nil || len(got) != 20 || !reflect.DeepEqual(got, b.m.List()) {
			t.Fatalf("%d of 20 lines, %v", len(got), err)
		}
		if same := reflect.DeepEqual(before, strip(got)); before != nil && same != (seed == 7) {
			t.Fatalf("seed %d: %v after %v", seed, strip(got), before)
		}
		before = strip(got)
		if err := b.m.Clear(); err != nil {
			t.Fatal(err)
		}
	}
	all, err := b.m.InjectRandom(1, lines, paths, false)
	if err != nil || len(all) != lines {
		t.Fatalf("all lines: %d, %v", len(all), err)
	}
	if _, err := b.m.InjectRandom(1, lines+1, paths, false); !errors.Is(err, ErrTooFew) {
		t.Fatalf("one line too many: %v", err)
	}
	if _, err := b.m.InjectRandom(1, 1, []string{"../" + filepath.Base(b.dir) + "/file"}, false); !errors.Is(err, unix.EXDEV) {
		t.Fatalf("a path that leads outside: %v", err)
	}
}

func TestPathThatIsNotUTF8(t *testing.T) {
	b := newBench(t, DAX, page)
	if _, err := b.m.Inject(b.id, "a\xff", int(b.os.Fd()), ranges.Range{Len: 1}, false); err != nil {
		t.Fatal(err)
	}
	b.restart(DAX)
	if got := b.m.List(); len(got) != 1 || got[0].Path != "" || string(got[0].PathB64) != "a\xff" {
		t.Fatalf("%+v", got)
	}
}

// Files of the same inode share their poison, and many may be in use at once.
func TestConcurrent(t *testing.T) {
	b := newBench(t, DAX, 16*page)
	var wg sync.WaitGroup
	for worker := range 4 {
		f := b.m.Open(int(b.os.Fd()))
		wg.Go(func() {
			for i := range int64(200) {
				off := int64(worker*4)*page + i%4*page
				if _, err := b.m.Inject(b.id, "file", int(b.os.Fd()), ranges.Range{Off: off, Len: 64}, i%2 == 0); err != nil {
					t.Error(err)
				}
				for range 3 { // short or EFAULT, then EIO
					_, _ = f.Pread(make([]byte, page), off) // what it says is for other tests
				}
				if n, err := f.Pwrite(fill(page), off, 0); n != page || err != nil {
					t.Errorf("write = %d, %v", n, err)
				}
				if n, err := f.Pread(make([]byte, page), off); n != page || err != nil {
					t.Errorf("read = %d, %v", n, err)
				}
				b.m.List()
			}
		})
	}
	wg.Wait()
	if left := b.poisoned(); len(left) != 0 {
		t.Fatalf("left %v", left)
	}
}

// A file without poison costs an atomic load more than the real one.
func BenchmarkCleanRead(bench *testing.B) {
	path := filepath.Join(bench.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, page), 0o600); err != nil {
		bench.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		bench.Fatal(err)
	}
	defer f.Close()
	other, err := os.CreateTemp(bench.TempDir(), "")
	if err != nil {
		bench.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Write(make([]byte, page)); err != nil {
		bench.Fatal(err)
	}
	below := media.New(-1)
	m, err := New(Options{Profile: DAX, Root: -1, Below: below})
	if err != nil {
		bench.Fatal(err)
	}
	id, err := fileid.Of(int(other.Fd()))
	if err != nil {
		bench.Fatal(err)
	}
	if _, err := m.Inject(id, "other", int(other.Fd()), ranges.Range{Len: 1}, false); err != nil {
		bench.Fatal(err)
	}
	for name, medium := range map[string]media.Medium{"real": below, "simulated": m} {
		file, buf := medium.Open(int(f.Fd())), make([]byte, page)
		bench.Run(name, func(bench *testing.B) {
			bench.ReportAllocs()
			for range bench.N {
				if _, err := file.Pread(buf, 0); err != nil {
					bench.Fatal(err)
				}
			}
		})
	}
}
