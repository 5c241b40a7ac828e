package recovery

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// failing is a medium whose device is gone: nothing reads, nothing vouches.
type failing struct{ media.Medium }

func (m failing) Open(fd int) media.File { return failingFile{m.Medium.Open(fd)} }

type failingFile struct{ media.File }

func (failingFile) Pread([]byte, int64) (int, error)          { return 0, unix.EIO }
func (failingFile) Pwrite([]byte, int64, uint32) (int, error) { return 0, unix.EIO }
func (failingFile) Corroborate(ranges.Range) media.Verdict    { return media.Unknown }
func (failingFile) Control(*ranges.Set) error                 { return unix.EIO }
func (failingFile) Salvage(b []byte, off int64) ([]ranges.Range, int64) {
	return []ranges.Range{rng(off, int64(len(b)))}, pg
}

// counting counts the calls that reach the medium.
type counting struct {
	media.Medium
	preads, stats *atomic.Int64
}

func newCounting(m media.Medium) counting {
	return counting{m, new(atomic.Int64), new(atomic.Int64)}
}

func (m counting) Open(fd int) media.File { return countingFile{m.Medium.Open(fd), m} }

type countingFile struct {
	media.File
	count counting
}

func (f countingFile) Pread(b []byte, off int64) (int, error) {
	f.count.preads.Add(1)
	return f.File.Pread(b, off)
}

func (f countingFile) Stat() (media.Stat, error) {
	f.count.stats.Add(1)
	return f.File.Stat()
}

func (f countingFile) Salvage(b []byte, off int64) ([]ranges.Range, int64) {
	f.count.preads.Add(1)
	return f.File.Salvage(b, off)
}
