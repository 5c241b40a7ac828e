// Package mediatest is a medium with scripted failures for tests of the
// engine: real files (a temporary file, or a memfd for one in memory), of which
// chosen ranges can't be read, behaving like a filesystem that nobody can ask
// about its errors.
//
// A read that meets a bad unit (of the granularity given to New) is short
// before it, and fails with EIO where it begins in one. A write that covers a
// bad page whole clears it; one that touches part of such a page writes what
// comes before the page, or fails with EIO. Truncate and fallocate that would
// have to read-modify-write a bad page fail with EIO; those that drop it
// whole drop its failure too. Corroborate never knows, as with most real
// filesystems. Bytes that a failed call left undefined are filled with
// Garbage, so that a test sees whoever trusts them.
package mediatest

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Garbage is what stands in buffers where nothing was read.
const Garbage = 0xEE

// Op names a method of media.File.
type Op string

// The calls that are counted and that Before is told of.
const (
	Pread       Op = "pread"
	Pwrite      Op = "pwrite"
	Allocate    Op = "fallocate"
	Truncate    Op = "ftruncate"
	Sync        Op = "fsync"
	Stat        Op = "statx"
	SetMtime    Op = "utimens"
	IsHole      Op = "lseek"
	Salvage     Op = "salvage"
	Corroborate Op = "corroborate"
	Control     Op = "control"
)

// Medium is the scripted medium. Files opened from it share their failures
// by inode.
type Medium struct {
	granularity int64
	below       *media.Real

	mu     sync.Mutex // guards all below, and holds one call at a time
	bad    map[inode]*ranges.Set
	counts map[Op]int
	outage error
	refuse error
	before func(op Op, r ranges.Range) error
}

type inode struct{ dev, ino uint64 }

var _ media.Medium = (*Medium)(nil)

// New is a medium without failures, whose failures will have the given
// granularity in bytes: ranges.LineSize to ranges.PageSize, a power of two.
func New(granularity int64) *Medium {
	return &Medium{
		granularity: granularity,
		below:       media.New(-1),
		bad:         map[inode]*ranges.Set{},
		counts:      map[Op]int{},
	}
}

// Open wraps fd.
func (m *Medium) Open(fd int) media.File {
	return &file{medium: m, below: m.below.Open(fd)}
}

// Source is "kernel": nobody shall be able to tell.
func (m *Medium) Source() string { return m.below.Source() }

// KernelCopies is false: the kernel would copy what can't be read.
func (m *Medium) KernelCopies() bool { return false }

// AnyListed is false: no file has a Device.
func (m *Medium) AnyListed() bool { return false }

// LookListed is false, as AnyListed.
func (m *Medium) LookListed() bool { return false }

// MustClear is false, as AnyListed.
func (m *Medium) MustClear() bool { return false }

// Bad makes the ranges of the file open at fd, widened to the granularity,
// unreadable.
func (m *Medium) Bad(fd int, rs ...ranges.Range) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	set, err := m.badOf(fd)
	if err != nil {
		return err
	}
	for _, r := range rs {
		set.Add(r.Widen(m.granularity))
	}
	return nil
}

// Left is what is still unreadable of the file open at fd.
func (m *Medium) Left(fd int) ([]ranges.Range, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	set, err := m.badOf(fd)
	if err != nil {
		return nil, err
	}
	return set.Slice(), nil
}

// SetOutage makes every call fail with err from now on, bad or not; nil ends it.
func (m *Medium) SetOutage(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.outage = err
}

// Refuse makes every write over a bad page fail with err: a medium that can't
// be cleared. nil ends it.
func (m *Medium) Refuse(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = err
}

// Before has fn called in front of each call; an error becomes the call's,
// and nothing is done below. fn must not call the medium. nil ends it.
func (m *Medium) Before(fn func(op Op, r ranges.Range) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = fn
}

// Counts is the number of calls by method since New or the last ResetCounts.
func (m *Medium) Counts() map[Op]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[Op]int{}
	for op, n := range m.counts {
		out[op] = n
	}
	return out
}

// ResetCounts begins counting anew.
func (m *Medium) ResetCounts() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.counts)
}

// badOf is called with m.mu held.
func (m *Medium) badOf(fd int) (*ranges.Set, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	key := inode{st.Dev, st.Ino}
	if m.bad[key] == nil {
		m.bad[key] = &ranges.Set{}
	}
	return m.bad[key], nil
}

// enter counts the call and tells how it begins; on success m.mu stays held.
func (m *Medium) enter(fd int, op Op, r ranges.Range) (*ranges.Set, error) {
	m.mu.Lock()
	m.counts[op]++
	err := m.outage
	if err == nil && m.before != nil {
		err = m.before(op, r)
	}
	var set *ranges.Set
	if err == nil {
		set, err = m.badOf(fd)
	}
	if err != nil {
		m.mu.Unlock()
	}
	return set, err
}
