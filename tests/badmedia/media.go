package main

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// media is what is bad, and the rules by which it fails.
type media struct {
	unit   int64
	cached bool
	short  bool
	reads  atomic.Int64

	mu     sync.RWMutex           // guards the rest; held over the I/O below, so that clearing and writing are one
	bad    map[uint64]*ranges.Set // by inode; whole units
	outage bool
	hung   map[uint64]chan struct{} // by inode; closed when it goes on

	volatile *volatile // nil: all that is written is durable
}

func (m *media) poison(ino uint64, r ranges.Range) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(ino, r)
}

// add is poison for a caller that holds mu.
func (m *media) add(ino uint64, r ranges.Range) {
	if m.bad[ino] == nil {
		m.bad[ino] = ranges.Of()
	}
	m.bad[ino].Add(r.Widen(m.unit))
}

func (m *media) left(ino uint64) []ranges.Range {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.of(ino).Slice()
}

func (m *media) setOutage(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.outage = on
}

func (m *media) cut() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.volatile == nil {
		return errors.New("not -volatile")
	}
	again, err := m.volatile.cut()
	for ino, set := range again {
		for r := range set.All() {
			m.add(ino, r)
		}
	}
	return err
}

// hang makes what is asked of a file's data wait until goOn.
func (m *media) hang(ino uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hung[ino] == nil {
		m.hung[ino] = make(chan struct{})
	}
}

func (m *media) goOn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, hung := range m.hung {
		close(hung)
	}
	clear(m.hung)
}

// wait returns when the file does not hang.
func (m *media) wait(ino uint64) {
	m.mu.RLock()
	hung := m.hung[ino]
	m.mu.RUnlock()
	if hung != nil {
		<-hung
	}
}

// of is what is bad in a file. The caller holds mu.
func (m *media) of(ino uint64) *ranges.Set {
	if s := m.bad[ino]; s != nil {
		return s
	}
	return ranges.Of()
}

// readable is how many bytes a READ of r gets. The caller holds mu.
func (m *media) readable(ino uint64, r ranges.Range) (int64, syscall.Errno) {
	if m.outage {
		return 0, unix.EIO
	}
	for bad := range m.of(ino).Within(r) {
		m.volatile.tell(ino, ranges.Page(bad.Off))
		if good := bad.Off&^(m.unit-1) - r.Off; good > 0 && !m.cached {
			return good, 0
		}
		return 0, unix.EIO
	}
	return r.Len, 0
}

// writable is EIO if a page with something bad is written in part only. The caller
// holds mu.
func (m *media) writable(ino uint64, r ranges.Range) syscall.Errno {
	if m.outage {
		return unix.EIO
	}
	whole := wholePages(r)
	for bad := range m.of(ino).Within(r.Widen(ranges.PageSize)) {
		if !whole.Contains(bad) {
			return unix.EIO
		}
	}
	return 0
}

// clear takes what is bad out of the whole pages of r. The caller holds mu.
func (m *media) clear(ino uint64, r ranges.Range) {
	if s := m.bad[ino]; s != nil {
		s.Remove(wholePages(r))
	}
}

func wholePages(r ranges.Range) ranges.Range {
	return ranges.Between((r.Off+ranges.PageSize-1)&^(ranges.PageSize-1), r.End()&^(ranges.PageSize-1))
}
