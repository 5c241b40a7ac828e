package recovery

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
)

// The engine against the bare calls, on a file in memory; alternating, so run as
//
//	go test -c -o bench ./recovery
//	for i in $(seq 12); do ./bench -test.run '^$' -test.bench 'Pread|Pwrite' -test.benchtime 100ms; done | tee out
//	go run golang.org/x/perf/cmd/benchstat@latest -col /by out

// clean is an engine over a file in memory of which nothing is known.
func clean(b testing.TB, size int) (fd int, f *File) {
	dir, err := os.MkdirTemp("/dev/shm", "mendfs")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	file, err := os.Create(dir + "/file")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	if _, err := file.Write(pattern(size)); err != nil {
		b.Fatal(err)
	}
	rules, err := SemanticsByName("recover")
	if err != nil {
		b.Fatal(err)
	}
	e := &Engine{Config: Config{Medium: media.New(-1), Semantics: rules}}
	fd = int(file.Fd())
	return fd, e.Open(&Inode{engine: e}, fd)
}

type call func(p []byte, off int64) (int, error)

var sizes = map[string]int{"4k": 4 << 10, "128k": 128 << 10, "1m": 1 << 20}

func compare(b *testing.B, bare func(fd int) call, engine func(f *File) call) {
	for _, size := range []string{"4k", "128k", "1m"} {
		fd, f := clean(b, sizes[size])
		p := make([]byte, sizes[size])
		for _, by := range []string{"bare", "engine"} {
			do := bare(fd)
			if by == "engine" {
				do = engine(f)
			}
			b.Run(fmt.Sprintf("size=%s/by=%s", size, by), func(b *testing.B) {
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				for b.Loop() {
					if n, err := do(p, 0); n != len(p) || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

func BenchmarkPread(b *testing.B) {
	compare(b, func(fd int) call {
		return func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) }
	}, func(f *File) call {
		return func(p []byte, off int64) (int, error) { return f.Read(p, off, Caller{Pid: 1, UID: 1, Known: true}) }
	})
}

func BenchmarkPwrite(b *testing.B) {
	compare(b, func(fd int) call {
		return func(p []byte, off int64) (int, error) { return unix.Pwrite(fd, p, off) }
	}, func(f *File) call {
		return func(p []byte, off int64) (int, error) {
			return f.Write(p, off, false, Caller{Pid: 1, UID: 1, Known: true})
		}
	})
}
