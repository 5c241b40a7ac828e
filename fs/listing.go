package fs

import (
	"math"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Listings that the kernel keeps.
//
// The kernel keeps the names it was given of a directory (CACHE_DIR), in pages of
// that directory, and lists them again without a request. It asks anew when a page
// is gone, when names were changed through the mount, and when it learns of
// another mtime, which it does not ask for (Linux 6.18, fs/fuse/readdir.c, without
// AUTO_INVAL_DATA; TestListingIsKept). So where others may change the directory we see
// to it that no listing is used for longer than half of what names may be
// kept: an open after that drops the pages, and of a directory that is open then
// they are dropped by a notification.
//
// The time counts where nobody else can change anything, too: names alone, when
// the kernel has forgotten the files, cost a lookup each.

// listing is what we know of the names that the kernel has of a directory.
type listing struct {
	// since is when the pages were dropped last, by table.clock: all of them are from
	// after that. 0: never.
	since uint32
	// begun counts the requests that began a listing, and the kernel's pages, anew.
	// Names read before that must not get in among later ones.
	begun uint32
}

// fresh is how long the kernel may use what it was told without asking whether it still
// holds, if all it was told then is to hold as long again.
func (f *FS) fresh() time.Duration { return min(f.config.EntryTimeout, f.config.AttrTimeout) / 2 }

// listsFrom says what the kernel may do with the names of n, open at fd with flags:
// keep them, and use those it has. since is for begins.
func (f *FS) listsFrom(n *inode, fd int, flags uint32) (open uint32, since uint32) {
	if f.config.StrictAtime || f.fresh() == 0 {
		return 0, 0
	}
	now := f.table.clock()
	n.mu.Lock()
	last := n.listing.since
	n.mu.Unlock()
	if last != 0 && int64(now-last) < f.fresh().Milliseconds() && !f.movesAtime(n, fd, flags) {
		return fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE, 0
	}
	return fuse.FOPEN_CACHE_DIR, now
}

// begins says that the kernel asks for names of h from offset off on, and answers with
// the listing that they belong to. It has seen the reply to the open by now.
func (f *FS) begins(h *handle, off uint64) uint32 {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if off != 0 {
		return n.listing.begun
	}
	n.listing.begun++
	if h.dir.since != 0 {
		n.listing.since = h.dir.since
	}
	if f.fresh() > 0 && !f.config.Exclusive {
		f.listings.add(n.id, f.fresh())
	}
	return n.listing.begun
}

// listings are directories with names that the kernel has to drop in time.
type listings struct {
	drop func(id uint64) // if the directory is open

	mu     sync.Mutex // guards all below; held during drop
	due    []due      // the first one first
	timer  *time.Timer
	closed bool
}

type due struct {
	id uint64
	at time.Time
}

func (l *listings) add(id uint64, after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due = append(l.due, due{id, time.Now().Add(after)})
	if len(l.due) == 1 && !l.closed {
		l.timer = time.AfterFunc(after, l.expire) // stopped by close
	}
}

func (l *listings) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	for len(l.due) > 0 {
		if wait := time.Until(l.due[0].at); wait > 0 {
			l.timer.Reset(wait)
			return
		}
		l.drop(l.due[0].id)
		l.due = l.due[1:]
	}
	l.due = nil // the memory of many
}

// close waits for drop. It is not called after that.
func (l *listings) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

// dropListing has the kernel drop the names of a directory that is open.
func (f *FS) dropListing(id uint64) {
	if f.table.inUse(id) {
		f.stale.add(id, ranges.Range{Len: math.MaxInt64})
	}
}
