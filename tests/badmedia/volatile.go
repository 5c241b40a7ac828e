package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// volatile is what a power cut may take back: how the bytes and the size of files
// were before each change, since the last fsync of the file. Names are durable at
// once, which is the worst for a file that was not synced before it got its name.
// It is guarded by media.mu, but for told.
type volatile struct {
	random *rand.Rand
	files  map[uint64]*unsynced // by inode

	mu   sync.Mutex             // guards told
	told map[uint64]*ranges.Set // bad pages that a READ has failed for, by inode
}

// unsynced is the changes of one file, oldest first.
type unsynced struct {
	file    *os.File
	changes []change
}

type change struct {
	at      ranges.Range // what was changed
	size    int64        // of the file before
	old     []byte       // of at, as far as the file went
	bad     *ranges.Set  // what of it was bad
	cleared *ranges.Set  // bad pages of it that readers had been told of: they are cleared, and then copied
}

func newVolatile(seed uint64) *volatile {
	return &volatile{random: rand.New(rand.NewPCG(seed, 1)), files: map[uint64]*unsynced{}, told: map[uint64]*ranges.Set{}}
}

// tell notes that a READ has met something bad in a page.
func (v *volatile) tell(ino uint64, page ranges.Range) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.told[ino] == nil {
		v.told[ino] = ranges.Of()
	}
	v.told[ino].Add(page)
}

// clears is the pages of bad that readers were told of. Such a page is on the medium's
// list now, so that a write first clears it.
func (v *volatile) clears(ino uint64, bad *ranges.Set) *ranges.Set {
	v.mu.Lock()
	defer v.mu.Unlock()
	pages, told := ranges.Of(), v.told[ino]
	if told == nil {
		return pages
	}
	for r := range bad.All() {
		for page := range told.Within(r.Widen(ranges.PageSize)) {
			pages.Add(page)
		}
	}
	for r := range pages.All() {
		told.Remove(r)
	}
	return pages
}

// before keeps what the open file fd has in r, which is about to be changed, as is
// its size perhaps, and what is bad there. A nil volatile keeps nothing.
func (v *volatile) before(ino uint64, fd int, r ranges.Range, bad *ranges.Set) error {
	if v == nil {
		return nil
	}
	u := v.files[ino]
	if u == nil {
		f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		u = &unsynced{file: f}
		v.files[ino] = u
	}
	st, err := u.file.Stat()
	if err != nil {
		return err
	}
	c := change{at: r, size: st.Size(), bad: bad, cleared: v.clears(ino, bad)}
	c.old = make([]byte, r.Intersect(ranges.Between(0, c.size)).Len)
	if _, err := u.file.ReadAt(c.old, r.Off); err != nil && err != io.EOF {
		return err
	}
	u.changes = append(u.changes, c)
	return nil
}

// synced makes a file's changes durable.
func (v *volatile) synced(ino uint64) {
	if v == nil {
		return
	}
	if u := v.files[ino]; u != nil {
		_ = u.file.Close() // nothing is written through it but in a cut
		delete(v.files, ino)
	}
}

// cut is a power cut: each sector that was changed and not synced is as before or as
// after any of its changes, each for itself, and so is the size. It returns what is bad
// again.
func (v *volatile) cut() (map[uint64]*ranges.Set, error) {
	bad := map[uint64]*ranges.Set{}
	for ino, u := range v.files {
		bad[ino] = ranges.Of()
		for _, c := range slices.Backward(u.changes) {
			if err := v.takeBack(u.file, c, bad[ino]); err != nil {
				return nil, err
			}
		}
		if err := u.file.Close(); err != nil {
			return nil, err
		}
	}
	clear(v.files)
	return bad, nil
}

func (v *volatile) takeBack(f *os.File, c change, bad *ranges.Set) error {
	if v.coin() {
		if err := f.Truncate(c.size); err != nil {
			return err
		}
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	inFile := c.at.Intersect(ranges.Between(0, st.Size()))
	for off := inFile.Off; off < inFile.End(); {
		sector := ranges.Between(off, min(inFile.End(), off&^(ranges.SectorSize-1)+ranges.SectorSize))
		off = sector.End()
		if !v.coin() {
			continue
		}
		was := make([]byte, sector.Len) // zeros behind the old end
		if from := sector.Off - c.at.Off; from < int64(len(c.old)) {
			copy(was, c.old[from:])
		}
		for again := range c.bad.Within(sector) {
			bad.Add(again)
		}
		if c.cleared.Overlaps(sector) { // what the memory holds between clear and copy
			bad.Remove(sector)
			for i := range was {
				was[i] = byte(v.random.Uint32())
			}
		}
		if _, err := f.WriteAt(was, sector.Off); err != nil {
			return err
		}
	}
	return nil
}

func (v *volatile) coin() bool { return v.random.IntN(2) == 0 }

// fdOf is the descriptor of a file of which an open one may be at hand.
func fdOf(open *gofs.LoopbackFile, path string) (fd int, done func(), err error) {
	if open != nil {
		fd, _ := open.PassthroughFd()
		return fd, func() {}, nil
	}
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	return fd, func() { _ = unix.Close(fd) }, err // nothing was written
}
