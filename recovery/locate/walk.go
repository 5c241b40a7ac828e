package locate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// search is one Find.
type search struct {
	unknown ranges.Set // of the device: files have to be asked for it; constant while they are

	mu      sync.Mutex // guards all below while there are threads
	change  *sync.Cond // of dirs and busy
	dirs    []string   // still to be read, below the root
	busy    int        // threads that read one, and may find more
	stopped bool
	owned   map[uint64][]pmem.Owner // by inode, of which no name was found yet
	seen    map[uint64]bool         // inodes with several names that were told
	found   Found
}

// walk looks at everything below root.
func (s *search) walk(ctx context.Context, root, threads int) error {
	s.change = sync.NewCond(&s.mu)
	s.dirs = []string{"."}
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopped = true
		s.change.Broadcast()
	})
	defer stop()
	var all sync.WaitGroup
	for range threads {
		all.Go(func() { // ends when all is read, or with ctx
			buf := make([]byte, 1<<16)
			for dir, ok := s.next(); ok; dir, ok = s.next() {
				err := s.readDir(root, dir, buf)
				s.done(dir, err)
			}
		})
	}
	all.Wait()
	return ctx.Err()
}

// next is a directory to be read; false if there is none, and will be none.
func (s *search) next() (dir string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.dirs) == 0 && s.busy > 0 && !s.stopped {
		s.change.Wait()
	}
	if len(s.dirs) == 0 || s.stopped {
		return "", false
	}
	last := len(s.dirs) - 1
	dir = s.dirs[last]
	s.dirs = s.dirs[:last]
	s.busy++
	return dir, true
}

func (s *search) done(dir string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	s.found.Asked++
	s.skip(dir, err)
	s.change.Broadcast()
}

// skip notes what could not be looked at. What is gone, or belongs to another
// filesystem, was none of ours. s.mu is held.
func (s *search) skip(name string, err error) {
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return
	case s.found.Skipped == 0:
		s.found.Why = fmt.Errorf("%s: %w", name, err)
	}
	s.found.Skipped++
}

// readDir looks at what is in a directory, and at itself.
func (s *search) readDir(root int, name string, buf []byte) error {
	fd, err := openAt(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if name == "." {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		s.claim(root, st.Ino, name, false)
	}
	if err := s.askFile(fd, name, pmem.Metadata); err != nil {
		return err
	}
	for !s.isStopped() {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		s.look(root, fd, name, buf[:n])
	}
	return nil
}

func (s *search) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// look goes through the entries of the directory dir, open at fd.
func (s *search) look(root, fd int, dir string, entries []byte) {
	var dirs []string
	asked := 0
	for len(entries) > 0 {
		var e entry
		e, entries = nextEntry(entries)
		if e.name == "." || e.name == ".." {
			continue
		}
		name := path.Join(dir, e.name)
		if e.kind == unix.DT_UNKNOWN {
			e.kind = kindOf(fd, e.name)
		}
		s.claim(root, e.ino, name, e.kind == unix.DT_REG)
		switch {
		case e.kind == unix.DT_DIR:
			dirs = append(dirs, name)
		case e.kind == unix.DT_REG && !s.unknown.Empty():
			asked++
			if err := s.openFile(fd, e.name, name); err != nil {
				s.mu.Lock()
				s.skip(name, err)
				s.mu.Unlock()
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found.Asked += asked
	s.dirs = append(s.dirs, dirs...)
	s.change.Broadcast()
}

// openFile asks the regular file called base in the directory dir.
func (s *search) openFile(dir int, base, name string) error {
	fd, err := openAt(dir, base, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.askFile(fd, name, pmem.File)
}

// askFile finds which of the unknown bytes are those of the file open at fd.
func (s *search) askFile(fd int, name string, kind pmem.Kind) error {
	if s.unknown.Empty() {
		return nil
	}
	var places []Place
	for e, err := range pmem.EachExtent(fd, ranges.Range{Len: math.MaxInt64}) {
		switch {
		case errors.Is(err, pmem.ErrRealtime), errors.Is(err, unix.EOPNOTSUPP) && kind == pmem.Metadata:
			return nil // its blocks are elsewhere; directories that can't tell
		case err != nil:
			return err
		}
		for hit := range s.unknown.Within(e.On()) {
			p := Place{Device: hit, Kind: kind, Path: name, Off: e.File.Off + hit.Off - e.Device}
			switch {
			case e.Unwritten():
				p.Kind = pmem.Free // reads give zeros, and the first write clears it
			case !e.Usable():
				p.Kind = pmem.Metadata // inline, encoded: no bytes of the file lie there one by one
			}
			places = append(places, p)
		}
	}
	if len(places) == 0 {
		return nil
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[id.Ino] {
		return nil // by another of its names
	}
	s.seen[id.Ino] = true
	for _, p := range places {
		p.File = id
		s.found.Places = append(s.found.Places, p)
	}
	return nil
}

// claim gives the inode that the filesystem has named as an owner its path.
func (s *search) claim(root int, ino uint64, name string, regular bool) {
	s.mu.Lock()
	owners := s.owned[ino]
	s.mu.Unlock()
	if len(owners) == 0 {
		return
	}
	fd, err := openAt(root, name, unix.O_PATH)
	if err != nil {
		return // gone, or a mountpoint: then its number is that of another filesystem
	}
	defer unix.Close(fd)
	id, err := fileid.Of(fd)
	if err != nil || id.Ino != ino {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.owned[ino]) == 0 {
		return // another thread had another of its names
	}
	delete(s.owned, ino)
	for _, o := range owners {
		p := Place{Device: o.Device, Kind: o.Kind, Path: name, File: id, Off: o.Off}
		if !regular {
			p.Kind = pmem.Metadata
		}
		s.found.Places = append(s.found.Places, p)
	}
}

// openAt opens a name below root, that leads neither out of it nor into another
// filesystem.
func openAt(root int, name string, flags uint64) (int, error) {
	return unix.Openat2(root, name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func kindOf(dir int, name string) byte {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return unix.DT_UNKNOWN
	}
	return byte(st.Mode >> 12) // as the kernel makes DT_* of it (fs_umode_to_dtype)
}

// entry is struct linux_dirent64.
type entry struct {
	ino  uint64
	kind byte
	name string
}

// nextEntry takes the first entry of what getdents64(2) gave.
func nextEntry(buf []byte) (entry, []byte) {
	const header = 19
	size := int(binary.NativeEndian.Uint16(buf[16:]))
	name, _, _ := strings.Cut(string(buf[header:size]), "\x00")
	return entry{ino: binary.NativeEndian.Uint64(buf), kind: buf[18], name: name}, buf[size:]
}
