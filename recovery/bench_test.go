package recovery

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
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

// badFile is an engine over simulated media, everything in memory, and a file of the
// given pages.
func badFile(b *testing.B, pages int64) (f *File, poison func(ranges.Range)) {
	dir, err := os.MkdirTemp("/dev/shm", "mendfs")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	check(os.Mkdir(dir+"/b", 0o755))
	check(os.WriteFile(dir+"/b/file", pattern(int(pages*pg)), 0o644))
	root, err := unix.Open(dir+"/b", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(err)
	fs, err := fileid.Filesystem(root)
	check(err)
	rootID, err := fileid.Of(root)
	check(err)
	real := media.New(root)
	simulated, err := sim.New(sim.Options{Profile: "dax", Store: dir + "/poison.jsonl", Root: root, Below: real})
	check(err)
	j, err := journal.Open(dir+"/journal", fs)
	check(err)
	l, err := ledger.Open(dir+"/ledger.db", fs, rootID)
	check(err)
	events, err := event.New(event.Options{Path: dir + "/events.jsonl"})
	check(err)
	rules, err := SemanticsByName("recover")
	check(err)
	e, err := New(Config{Medium: simulated, Journal: j, Ledger: l, Events: events, Root: root, FS: fs, Semantics: rules})
	check(err)
	fd, err := unix.Open(dir+"/b/file", unix.O_RDWR|unix.O_CLOEXEC, 0)
	check(err)
	b.Cleanup(func() {
		for _, close := range []func() error{e.Close, j.Shutdown, l.Close, events.Close, simulated.Close, real.Close,
			func() error { return unix.Close(fd) }, func() error { return unix.Close(root) }} {
			if err := close(); err != nil {
				b.Error(err)
			}
		}
	})
	id, err := fileid.Of(fd)
	check(err)
	return e.Open(e.NewInode(fd), fd), func(at ranges.Range) {
		_, err := simulated.Inject(id, "file", fd, at, false)
		check(err)
	}
}

// BenchmarkRepair is writes of a part of a bad page, and of whole bad pages one by
// one and in requests of 128 KiB, against the same on a clean file.
func BenchmarkRepair(b *testing.B) {
	const pages = 2048
	for _, size := range []int64{64, pg, 128 << 10} {
		for _, bad := range []bool{false, true} {
			b.Run(fmt.Sprintf("write=%d/bad=%v", size, bad), func(b *testing.B) {
				f, poison := badFile(b, pages)
				data, n := pattern(int(size)), int64(0)
				step := max(size, pg)
				b.SetBytes(step)
				b.ResetTimer()
				for n = range int64(b.N) {
					off := n * step % (pages * pg)
					if off == 0 && bad {
						b.StopTimer()
						if size >= pg {
							poison(rng(0, pages*pg))
						}
						for page := int64(0); page < pages && size < pg; page++ {
							poison(rng(page*pg+1024, 64))
						}
						all := make([]byte, pages*pg)
						if n, err := f.Read(all, 0, Caller{}); n != len(all) || err != nil {
							b.Fatal(n, err)
						}
						b.StartTimer()
					}
					if got, err := f.Write(data, off, false, Caller{}); got != len(data) || err != nil {
						b.Fatal(got, err)
					}
				}
				b.ReportMetric(float64(n+1)*float64(step/pg)/b.Elapsed().Seconds(), "pages/s")
			})
		}
	}
}

// BenchmarkReread is reads of 128 KiB of a file of 64 MiB of which so many pages
// are known to be bad.
func BenchmarkReread(b *testing.B) {
	const pages = 16384
	for _, bad := range []int64{0, 1000} {
		b.Run(fmt.Sprintf("bad=%d", bad), func(b *testing.B) {
			f, poison := badFile(b, pages)
			p := make([]byte, 128<<10)
			all := func() {
				for off := int64(0); off < pages*pg; off += int64(len(p)) {
					if n, err := f.Read(p, off, Caller{}); n != len(p) || err != nil {
						b.Fatal(n, err)
					}
				}
			}
			for n := range bad {
				poison(rng(n*pages/bad*pg+1024, 64))
			}
			all()
			b.SetBytes(pages * pg)
			for b.Loop() {
				all()
			}
		})
	}
}
