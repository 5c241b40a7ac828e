package media

import (
	"runtime"
	"sync"
	"weak"

	"golang.org/x/sys/unix"
)

// alone has the reads of a file of a FUSE filesystem go one at a time, and past the page cache
// as far as that goes. There the kernel takes a short answer for the end of the file, sets
// the size it knows, and fills the page up with zeros; where another answer has
// changed what it knows meanwhile it leaves the size, and the zeros are data from then on
// (fuse_short_read, fuse_read_update_size). With O_DIRECT it comes to that, too: for the rest of a
// read that was short it turns to the cache (generic_file_read_iter; Linux 6.18,
// TestShortAnswersOfFUSE).
type alone struct {
	mu    sync.Mutex // guards turns
	turns map[uint64]weak.Pointer[turn]
}

// turn is whose it is to read a file.
type turn struct {
	mu sync.Mutex // held over a read
	_  *turn      // or it would lie in one piece of memory with others of a few bytes, and be kept as long as they
}

// turnOf is that of the file open at fd; nil if it needs none, or none can be had.
func (a *alone) turnOf(fd int) *turn {
	var st unix.Stat_t
	if a == nil || unix.Fstat(fd, &st) != nil {
		return nil
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
		// On this descriptor alone: the server's own needs no alignment. It goes without where it is refused.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM) // no read-ahead, which nobody waits for
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.turns[st.Ino].Value(); t != nil {
		return t
	}
	t := &turn{}
	a.turns[st.Ino] = weak.Make(t)
	runtime.AddCleanup(t, a.forget, st.Ino)
	return t
}

func (a *alone) forget(ino uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.turns[ino].Value() == nil {
		delete(a.turns, ino)
	}
}

// pread is pread(2), with n ≥ 0. After a short one the kernel learns the size again, and
// what it has made up is dropped. One that has left pages in the cache was short, whatever
// it says: it is made again, unless they come each time, from somebody else. A nil turn is
// anybody's.
func (t *turn) pread(fd int, p []byte, off int64) (int, error) {
	if t == nil {
		return pread(fd, p, off)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	const tries = 8
	for try := 1; ; try++ {
		n, err := pread(fd, p, off)
		whole := err == nil && n == len(p)
		if whole && cached(fd, off, int64(n)) == 0 {
			return n, nil
		}
		lookAgain(fd)
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) // advice
		if !whole || try == tries {
			return n, err
		}
	}
}

// cached is how many pages of a range are in the page cache, where the kernel says
// (cachestat, Linux ≥ 6.5).
func cached(fd int, off, n int64) uint64 {
	var have unix.Cachestat_t
	if unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &have, 0) != nil {
		return 0
	}
	return have.Cache
}
