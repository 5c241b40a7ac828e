package fs

import (
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Changes that others make in the backing directory of a mount beside it.
//
// The kernel drops no pages by itself (EXPLICIT_INVAL_DATA). It could, whenever
// it is told of an mtime that it does not expect (AUTO_INVAL_DATA), but our own
// writes make those, and dropping a page while a WRITE of it is on its way loses
// that write (see crossing). So we tell apart who changed the file: we remember
// what each change of ours has left, and whatever else the file turns out to be,
// others have made it. Then the kernel has to drop what it has of the file.
//
// A change by others is seen when somebody asks for attributes, opens the file or
// changes it, if it moved mtime or size. Where the filesystem's times are
// as coarse as the kernel's tick (before Linux 6.13, or without multigrain
// timestamps) that fails within the tick of a change of ours.

// version is what a file was at some time.
type version struct {
	mtime, ctime int64 // nanoseconds
	size         uint64
}

func versionOf(st *unix.Statx_t) version {
	nano := func(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }
	return version{mtime: nano(st.Mtime), ctime: nano(st.Ctime), size: st.Size}
}

// sameData reports whether the content is the same. ctime moves with names and
// permissions, too.
func (v version) sameData(o version) bool { return v.mtime == o.mtime && v.size == o.size }

// sight is what we know of a file that others may change.
type sight struct {
	mu    sync.Mutex // guards all below; held while attributes are asked for, so that no change of ours gets in between
	own   int32      // changes of ours under way
	known bool
	last  version // what we saw first, or what the last change has left: ours, or others' when we noticed
}

// isWatched reports whether others may change the content of n.
func (f *FS) isWatched(n *inode) bool { return !f.config.Exclusive && n.kind == unix.S_IFREG }

// changing says that we are about to change n, open at fd. What others have
// done before would look like ours afterwards, so it is looked for now.
func (f *FS) changing(n *inode, fd int) {
	if !f.isWatched(n) {
		return
	}
	s := &n.sight
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == 0 {
		f.compare(n, fd)
	}
	s.own++
}

// changed is the end of changing.
func (f *FS) changed(n *inode, fd int) {
	if !f.isWatched(n) {
		return
	}
	s := &n.sight
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own--; s.own > 0 {
		return
	}
	var st unix.Statx_t
	s.known = n.stat(fd, &st) == nil
	s.last = versionOf(&st)
}

// look compares attributes of n, open at fd, that were just asked for with what
// the file should be.
func (f *FS) look(n *inode, fd int, st *unix.Statx_t) {
	if !f.isWatched(n) {
		return
	}
	s := &n.sight
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.own > 0:
	case !s.known: // no change of ours has ended yet: st is not from before one
		s.known, s.last = true, versionOf(st)
	case !s.last.sameData(versionOf(st)):
		f.compare(n, fd) // st may be from before a change of ours
	}
}

// unchanged reports whether n, open at fd, is what it should be, its ctime included:
// who sets mtime back after a change can't do that with ctime. Only then the
// kernel may keep its pages over an open.
func (f *FS) unchanged(n *inode, fd int) bool {
	s := &n.sight
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own > 0 {
		return true
	}
	was, known := s.last, s.known
	f.compare(n, fd)
	return known && s.known && s.last == was
}

// compare looks at n, which no change of ours is under way of, and has the kernel
// drop its pages if others have changed the content. n.sight.mu is held.
func (f *FS) compare(n *inode, fd int) {
	s := &n.sight
	was, known := s.last, s.known
	var st unix.Statx_t
	s.known = n.stat(fd, &st) == nil
	s.last = versionOf(&st)
	if known && s.known && !s.last.sameData(was) && n.isCached() {
		f.stale.add(n.id, ranges.Range{Len: math.MaxInt64})
	}
}

// isCached reports whether the kernel may have pages of n that it would use. Where it
// does I/O itself, what it changes looks like others' doing, and it has none;
// what is left of them goes at the next open (see FS.keepsCache).
func (n *inode) isCached() bool {
	p := n.passed.Load()
	return p == nil || p.cached.Load() > 0
}
