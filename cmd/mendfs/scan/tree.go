package scan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// tree reads the root, from offset in the file at the cursor on.
func (s *Scan) tree(ctx context.Context, offset int64) error {
	fd, err := unix.Open(s.Root, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Root, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd) // only looked at
		return fmt.Errorf("%s: %w", s.Root, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return s.dir(ctx, fd, "", &offset)
	case unix.S_IFREG:
		defer unix.Close(fd)
		return s.file(ctx, fd, "", offset)
	}
	_ = unix.Close(fd) // the same
	return fmt.Errorf("%s: neither a directory nor a file: %w", s.Root, unix.EINVAL)
}

// dir reads what is in the directory open at fd, which it closes. offset is used by
// the file at the cursor, and zero for all others.
func (s *Scan) dir(ctx context.Context, fd int, name string, offset *int64) error {
	names, err := sortedNames(fd)
	defer unix.Close(fd)
	if err != nil {
		return s.skip(name, err)
	}
	if len(s.from) > 0 {
		first, _ := slices.BinarySearch(names, s.from[0])
		names = names[first:]
		if len(names) == 0 || names[0] != s.from[0] {
			s.from, *offset = nil, 0 // it is gone: go on with the next
		}
	}
	for _, base := range names {
		if len(s.from) > 0 {
			s.from = s.from[1:]
		}
		if err := s.entry(ctx, fd, base, path.Join(name, base), offset); err != nil {
			return err
		}
		s.from, *offset = nil, 0
	}
	return nil
}

// entry reads one name of the directory dir.
func (s *Scan) entry(ctx context.Context, dir int, base, name string, offset *int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	kind := st.Mode & unix.S_IFMT
	if err != nil || kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return s.skip(name, err)
	}
	fd, err := open(dir, base)
	if err != nil {
		return s.skip(name, err)
	}
	if kind == unix.S_IFDIR {
		return s.dir(ctx, fd, name, offset)
	}
	defer unix.Close(fd)
	return s.file(ctx, fd, name, *offset)
}

// skip tells what can't be opened; what is gone meanwhile, or belongs to another
// filesystem, was not to be read.
func (s *Scan) skip(name string, err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	s.Skip(name, err)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil // it says nothing of the device
	}
	return s.failed(err)
}

// open opens a name for reading past the page cache, without moving the access
// time, as far as both can be had.
func open(dir int, base string) (fd int, err error) {
	for _, extra := range []uint64{unix.O_DIRECT | unix.O_NOATIME, unix.O_DIRECT, unix.O_NOATIME, 0} {
		fd, err = unix.Openat2(dir, base, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC | extra,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) { // another's file; no O_DIRECT here
			return fd, err
		}
	}
	return fd, err
}

func sortedNames(fd int) ([]string, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(own), "directory")
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}
