package fs

import (
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// stale is what the kernel has to drop from its page cache, since others have
// changed it (see sight), or a repair: it may have kept bytes from before they were
// lost, or zeros for bytes that are there again. That waits for pages locked by unanswered reads, and
// writes dirty ones back to us, so it is not done from inside a request.
type stale struct {
	server *atomic.Pointer[fuse.Server]

	mu      sync.Mutex // guards all below
	pages   map[uint64]*ranges.Set
	running bool           // drop runs: it ends when pages is empty
	done    sync.WaitGroup // the one that runs
}

// dropStale has the kernel drop what repairs have changed of n. Call it when a
// request has changed or learnt something; for a file of which nothing is known
// it costs two loads.
func (f *FS) dropStale(n *inode) {
	rec := n.rec.Load()
	if rec == nil {
		return
	}
	changed := rec.TakeChanged()
	if len(changed) == 0 {
		return
	}
	f.stale.add(n.id, changed...)
}

// add has the kernel drop pages of the inode id.
func (s *stale) add(id uint64, pages ...ranges.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages[id] == nil {
		s.pages[id] = ranges.Of()
	}
	for _, r := range pages {
		s.pages[id].Add(r)
	}
	if !s.running {
		s.running = true
		s.done.Go(s.drop)
	}
}

// drop tells the kernel until there is nothing more to tell.
func (s *stale) drop() {
	for {
		id, pages := s.next()
		if pages == nil {
			return
		}
		for r := range pages.All() {
			if server := s.server.Load(); server != nil { // mounted
				_ = server.InodeNotify(id, r.Off, r.Len) // ENOENT: the kernel has forgotten it
			}
		}
	}
}

// next takes one file's pages; nil: there are none, and drop is to end.
func (s *stale) next() (id uint64, pages *ranges.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, pages := range s.pages {
		delete(s.pages, id)
		return id, pages
	}
	s.running = false
	return 0, nil
}
