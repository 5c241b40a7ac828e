package fs

import (
	"slices"
	"sync"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// crossing keeps READs of a file from being answered with less than WRITEs
// that the kernel has sent.
//
// write(2) puts its bytes into the page cache, lets go of the page if all of it
// is up to date, and then waits for its WRITE (Linux 6.18, fuse_fill_write_pages).
// When the page is dropped meanwhile, by a notification of ours or by an
// open without KEEP_CACHE, another process' access brings it back by a READ. If that
// overtook the WRITE, old bytes would stay in the cache after write(2) has
// returned, and a store beside them through a mapping would write them back over the
// new ones. The WRITE may wait long for a repair, and a repair is what drops pages.
// So a READ waits for the WRITEs that are here, and is done once more when one
// came meanwhile (tests/coherence).
type crossing struct {
	mu     sync.Mutex // guards all below
	landed sync.Cond  // a WRITE has ended; by mu
	writes []ranges.Range
	reads  []crossed
	last   uint64 // number of a READ
}

// crossed is a READ that is under way.
type crossed struct {
	number uint64
	r      ranges.Range
	by     bool // a WRITE of some of it has come
}

// crossing is made on the first write.
func (n *inode) crossing() *crossing {
	if c := n.cross.Load(); c != nil {
		return c
	}
	c := &crossing{}
	c.landed.L = &c.mu
	n.cross.CompareAndSwap(nil, c)
	return n.cross.Load()
}

// start is the arrival of a WRITE, and end its end.
func (c *crossing) start(w ranges.Range) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes = append(c.writes, w)
	for i := range c.reads {
		c.reads[i].by = c.reads[i].by || c.reads[i].r.Overlaps(w)
	}
}

func (c *crossing) end(w ranges.Range) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.writes, w)
	c.writes = slices.Delete(c.writes, i, i+1)
	c.landed.Broadcast()
}

// enter waits for the WRITEs of r that are here, and gives the READ of it a number.
func (c *crossing) enter(r ranges.Range) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for slices.ContainsFunc(c.writes, r.Overlaps) {
		c.landed.Wait()
	}
	c.last++
	c.reads = append(c.reads, crossed{number: c.last, r: r})
	return c.last
}

// leave is the end of a READ, and reports whether a WRITE has crossed it.
func (c *crossing) leave(number uint64) (by bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.reads, func(o crossed) bool { return o.number == number })
	by = c.reads[i].by
	c.reads = slices.Delete(c.reads, i, i+1)
	return by
}

// crossings are how often a READ is done again, at most. The kernel sends a WRITE of a
// page that is being read only if the page was dropped before: one, since it writes
// to a file once at a time. There may be more with O_DIRECT, which
// promises nothing to mappings.
const crossings = 16

// uncrossed does read, which is of r, until no WRITE has crossed it. Files that nobody
// has written to cost two loads.
func (n *inode) uncrossed(r ranges.Range, read func()) {
	for range crossings {
		c := n.cross.Load()
		if c == nil {
			read()
			if n.cross.Load() == nil {
				return
			}
			continue
		}
		number := c.enter(r)
		read()
		if !c.leave(number) {
			return
		}
	}
}

// fillsCache reports whether what is read by way of h may go into the page cache.
// With O_DIRECT it may, by a mapping.
func (h *handle) fillsCache() bool { return h.service == cached && !h.appends }
