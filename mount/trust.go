package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// trusted fails if anybody but root and the user uid could put something else
// in the place of path, or of what leads there: each directory on the way must
// belong to one of the two, and be writable by nobody else, unless its sticky
// bit keeps others from renaming what is not theirs. Symbolic links on the way
// must belong to one of the two as well. What does not exist yet is to be
// made, and trusted then.
func trusted(path string, uid int) error {
	at, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w := trustWalk{at: at, name: "/", uid: uid, rest: components(path)}
	defer func() { _ = unix.Close(w.at) }() // O_PATH
	for len(w.rest) > 0 {
		if err := w.step(); errors.Is(err, unix.ENOENT) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return w.check(w.at, w.name)
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// maxLinks is how many symbolic links the kernel follows in a path.
const maxLinks = 40

// trustWalk goes along a path as the kernel does.
type trustWalk struct {
	at    int    // O_PATH of what has been reached
	name  string // its path
	rest  []string
	uid   int
	links int
}

func (w *trustWalk) step() error {
	if err := w.check(w.at, w.name); err != nil {
		return err
	}
	name := filepath.Join(w.name, w.rest[0])
	fd, err := unix.Openat(w.at, w.rest[0], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.rest = w.rest[1:]
	target, err := w.link(fd, name)
	if err != nil {
		_ = unix.Close(fd) // O_PATH
		return err
	}
	if target == "" {
		_ = unix.Close(w.at) // O_PATH
		w.at, w.name = fd, name
		return nil
	}
	_ = unix.Close(fd) // O_PATH
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	w.rest = append(components(target), w.rest...)
	if !filepath.IsAbs(target) {
		return nil
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = unix.Close(w.at) // O_PATH
	w.at, w.name = root, "/"
	return nil
}

// link is what the symbolic link at fd says; "" if there is none.
func (w *trustWalk) link(fd int, name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	if !w.owns(&st) {
		return "", fmt.Errorf("the symbolic link %s belongs to uid %d", name, st.Uid)
	}
	text := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", text)
	return string(text[:n]), err
}

func (w *trustWalk) owns(st *unix.Stat_t) bool { return st.Uid == 0 || int(st.Uid) == w.uid }

// check is for what path leads through.
func (w *trustWalk) check(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil // opening it says so better
	case !w.owns(&st):
		return fmt.Errorf("%s belongs to uid %d, who could replace what is in it", name, st.Uid)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return fmt.Errorf("%s can be written by others (mode %04o), who could replace what is in it", name, st.Mode&0o7777)
	}
	return nil
}
