package media

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// controls are a few files of the filesystem that stand ready to be read.
type controls struct {
	alone *alone // Real's

	mu    sync.Mutex // guards files; held while one is read
	files []control
}

type control struct {
	fd   int
	turn *turn
	ino  uint64
	size int64
}

const (
	maxControls = 4    // files kept open
	maxWalk     = 1000 // names looked at to find them
)

// read reads a page of a file other than the one with the given Stat. The
// error is ErrNoControl if there is no other file. As long as few are kept, one that
// fails does not speak for the rest: it may be poisoned itself.
func (c *controls) read(root int, not Stat) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	err := c.readKept(not)
	if err != nil && len(c.files) < maxControls {
		c.walk(root, not)
		err = c.readKept(not)
	}
	return err
}

// readKept is called with c.mu held.
func (c *controls) readKept(not Stat) error {
	failure := error(ErrNoControl)
	for _, file := range c.files {
		if file.ino == not.Ino {
			continue
		}
		err := readAny(file.fd, file.turn, file.size, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrNoControl) {
			failure = err
		}
	}
	return failure
}

// refresh lets go of files that were removed, and learns the new sizes of the
// others. It is called with c.mu held.
func (c *controls) refresh() {
	c.files = slices.DeleteFunc(c.files, func(file control) bool {
		var st unix.Stat_t
		gone := unix.Fstat(file.fd, &st) == nil && st.Nlink == 0
		if gone {
			_ = unix.Close(file.fd) // only read from
		}
		return gone
	})
	for i := range c.files {
		var st unix.Stat_t
		if unix.Fstat(c.files[i].fd, &st) == nil {
			c.files[i].size = st.Size
		}
	}
}

// walk looks for files with data below root, breadth first and never through
// a symbolic link or onto another filesystem. It is called with c.mu held.
func (c *controls) walk(root int, not Stat) {
	seen := 0
	for queue := []string{"."}; len(queue) > 0 && seen < maxWalk; queue = queue[1:] {
		names := list(root, queue[0], maxWalk-seen)
		seen += len(names)
		for _, name := range names {
			path := queue[0] + "/" + name
			var st unix.Stat_t
			if err := statBelow(root, path, &st); err != nil || st.Dev != not.Dev {
				continue
			}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				queue = append(queue, path)
			case unix.S_IFREG:
				c.keep(root, path, st, not)
			}
			if len(c.files) >= maxControls {
				return
			}
		}
	}
}

// keep opens the file at path, if it is one to compare with.
func (c *controls) keep(root int, path string, st unix.Stat_t, not Stat) {
	known := slices.ContainsFunc(c.files, func(file control) bool { return file.ino == st.Ino })
	if known || st.Ino == not.Ino || st.Size == 0 || st.Blocks == 0 {
		return
	}
	fd, err := openBelow(root, path, unix.O_RDONLY)
	if err != nil {
		return // not ours to read
	}
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil || now.Ino != st.Ino {
		_ = unix.Close(fd) // another file came in between
		return
	}
	c.files = append(c.files, control{fd, c.alone.turnOf(fd), st.Ino, st.Size})
}

func (c *controls) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, file := range c.files {
		err = errors.Join(err, unix.Close(file.fd))
	}
	c.files = nil
	return err
}

// list is up to limit names in the directory at path; what can't be listed
// is empty.
func list(root int, path string, limit int) []string {
	fd, err := openBelow(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	names, err := dir.Readdirnames(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	return names
}

func statBelow(root int, path string, st *unix.Stat_t) error {
	fd, err := openBelow(root, path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, st)
}

func openBelow(root int, path string, flags uint64) (int, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK // wait for nobody's lease
	}
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}
