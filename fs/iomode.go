package fs

import (
	"fmt"
	"slices"
	"strings"
)

// Protect says what the kernel may serve by itself, past the engine.
type Protect int

const (
	ProtectFull  Protect = iota // nothing
	ProtectRW                   // mappings
	ProtectKnown                // all I/O on files without known poison, and mappings
)

var protectNames = []string{"full", "rw", "known"}

func (p Protect) String() string { return protectNames[p] }

// ProtectByName finds a mode; the error says which there are.
func ProtectByName(name string) (Protect, error) {
	if i := slices.Index(protectNames, name); i >= 0 {
		return Protect(i), nil
	}
	return 0, fmt.Errorf("no protection %q; there are: %s", name, strings.Join(protectNames, ", "))
}

// service is how one open of a file is served.
type service uint8

const (
	cached  service = iota // by us, through the kernel's page cache: fully protected
	direct                 // read and write by us, mappings by the kernel: FOPEN_DIRECT_IO|FOPEN_PASSTHROUGH
	through                // by the kernel: FOPEN_PASSTHROUGH
)

// ioMode decides how the opens of one inode are served, so that they go
// together.
//
// Two opens of an inode go together if both are cached, or if none is; all else
// the kernel answers with EIO (Linux 6.18, fs/fuse/iomode.c; TestMixedOpens).
// Direct I/O without passthrough would go with cached, but it can't be mapped.
// An open can't be changed, so the mode of an inode can only change while there
// is none. The kernel ends an open before it sends RELEASE: what is counted
// here is never less than what it counts.
//
// Mappings are another matter. A mapping made by way of passthrough is one of the
// backing file, and does not keep the open of the mount's file: RELEASE comes, and the
// kernel would let a cached open in, which then sees other bytes than the mapping
// does, while the mapping writes behind the engine's back. Nobody tells us of a
// mapping. It may be left (lingers) until one of two things shows that it is
// not, of which FORGET, which ends the inode and this, is the one: a mapping
// holds the directory entry of the mount's file. The other is unused.
// (TestMappingOutlivesClose)
type ioMode struct {
	opens   [3]int // by service
	lingers bool   // a mapping of a closed passthrough open may be left
}

// passing is the number of opens by which the kernel may reach the backing file
// itself.
func (m *ioMode) passing() int { return m.opens[direct] + m.opens[through] }

// isShared reports whether the kernel may be writing the backing file.
func (m *ioMode) isShared() bool { return m.passing() > 0 || m.lingers }

// next is how the next open has to be served. It asks, if it matters, whether
// the file is damaged and whether it is unused: nobody but who asks has the
// backing file open or mapped.
func (m *ioMode) next(p Protect, damaged, unused func() bool) service {
	switch {
	case p == ProtectFull, m.opens[cached] > 0:
		return cached
	case p == ProtectRW:
		return direct
	case !damaged():
		return through
	case m.passing() > 0, !m.settle(unused):
		return direct
	}
	return cached
}

// settle reports whether no mapping can be left. Nothing is open in passthrough.
func (m *ioMode) settle(unused func() bool) bool {
	if m.lingers && unused() {
		m.lingers = false
	}
	return !m.lingers
}

func (m *ioMode) opened(s service) { m.opens[s]++ }

func (m *ioMode) closed(s service) {
	m.opens[s]--
	m.lingers = m.lingers || s != cached
}
