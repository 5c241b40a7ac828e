//go:build failpoints

package recovery

import (
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// powerMedium is simulated poison over memory that loses what was not synced.
// Each change of a file is an instant.
type powerMedium struct {
	media.Medium // poison, over pmem
	sim          *sim.Medium
	pmem         *mediatest.Pmem
	instant      func(name string, change func())
	lines        bool                          // a clear is of lines, not of pages
	cleared      func(fd int, at ranges.Range) // is told of clears

	// freed is the poison of blocks that were freed: a power cut may bring them
	// back. The world's lock guards it.
	freed map[uint64][]poisoned
}

// poisoned is poison of a block.
type poisoned struct {
	at     ranges.Range // within the block
	latent bool
}

func (m *powerMedium) Open(fd int) media.File { return &powerFile{m.Medium.Open(fd), m} }

type powerFile struct {
	media.File
	m *powerMedium
}

func (f *powerFile) Pwrite(p []byte, off int64, uid uint32) (n int, err error) {
	err = f.change("pwrite", func() error {
		n, err = f.File.Pwrite(p, off, uid)
		return err
	})
	return n, err
}

func (f *powerFile) Truncate(size int64) error {
	return f.change("ftruncate", func() error { return f.File.Truncate(size) })
}

func (f *powerFile) Allocate(mode uint32, off, length int64, uid uint32) error {
	return f.change("fallocate", func() error { return f.File.Allocate(mode, off, length, uid) })
}

func (f *powerFile) Sync(full bool) (err error) {
	f.m.instant("fsync", func() { err = f.File.Sync(full) })
	return err
}

func (f *powerFile) SetMtime(ns int64) (err error) {
	f.m.instant("utimens", func() { err = f.File.SetMtime(ns) })
	return err
}

// change tells the memory what poison a call has cleared, and remembers that of
// the blocks that it has freed.
func (f *powerFile) change(name string, call func() error) (err error) {
	m, fd := f.m, f.Fd()
	m.instant(name, func() {
		poison, blocks := m.poisonOf(fd), m.blocks(fd)
		if err = call(); len(poison) == 0 { // one that has failed may have freed some (sim, zeroUntilRefused)
			return
		}
		left, after := ranges.Set{}, m.blocks(fd)
		for _, p := range m.poisonOf(fd) {
			left.Add(p.at)
		}
		for _, p := range poison {
			page := ranges.Page(p.at.Off)
			if id := blocks[page.Off]; id != after[page.Off] {
				m.freed[id] = append(m.freed[id], poisoned{p.at.Shift(-page.Off), p.latent})
			} else if !left.Overlaps(p.at) {
				cleared := m.clears(p.at)
				m.must(m.pmem.Cleared(fd, cleared))
				m.cleared(fd, cleared)
			}
		}
	})
	return err
}

// must is for calls that fail only if the test is wrong.
func (m *powerMedium) must(err error) {
	if err != nil {
		panic(err)
	}
}

func (m *powerMedium) blocks(fd int) map[int64]uint64 {
	ids, err := m.pmem.Blocks(fd)
	m.must(err)
	return ids
}

// clears is what of the memory is undefined when a line is cleared.
func (m *powerMedium) clears(line ranges.Range) ranges.Range {
	if m.lines {
		return line
	}
	return ranges.Page(line.Off)
}

// poisonOf is the poison of the file open at fd, line by line.
func (m *powerMedium) poisonOf(fd int) []poisoned {
	injections := m.sim.List()
	if len(injections) == 0 {
		return nil
	}
	id, err := fileid.Of(fd)
	m.must(err)
	var out []poisoned
	for _, in := range injections {
		if in.File.Key() != id.Key() {
			continue
		}
		for _, r := range in.Remaining {
			for line := r.Widen(ranges.LineSize); !line.Empty(); line = ranges.Between(line.Off+ranges.LineSize, line.End()) {
				out = append(out, poisoned{ranges.Range{Off: line.Off, Len: ranges.LineSize}, in.Latent})
			}
		}
	}
	return out
}
