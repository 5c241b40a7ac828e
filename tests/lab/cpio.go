package main

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
)

// archive is the guest's root filesystem, by path without a leading slash.
type archive map[string]entry

type entry struct {
	mode fs.FileMode // directory, symbolic link or regular file, and permissions
	data []byte      // of a link, where it points
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

// add puts a file in, and the directories above it.
func (a archive) add(name string, e entry) {
	for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
		if _, ok := a[dir]; !ok {
			a[dir] = entry{mode: fs.ModeDir | 0o755}
		}
	}
	a[name] = e
}

// writeTo writes the archive in the kernel's form
// (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
func (a archive) writeTo(w io.Writer) error {
	for ino, name := range slices.Sorted(maps.Keys(a)) { // directories come before what is in them
		e := a[name]
		if err := writeEntry(w, ino+1, name, unixMode(e.mode), e.data); err != nil {
			return err
		}
	}
	return writeEntry(w, 0, "TRAILER!!!", 0, nil)
}

func unixMode(m fs.FileMode) uint32 {
	kind := uint32(modeFile)
	switch {
	case m.IsDir():
		kind = modeDir
	case m&fs.ModeSymlink != 0:
		kind = modeLink
	}
	return kind | uint32(m.Perm())
}

func writeEntry(w io.Writer, ino int, name string, mode uint32, data []byte) error {
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	for _, part := range [][]byte{[]byte(head), data} {
		if _, err := w.Write(append(part[:len(part):len(part)], make([]byte, -len(part)&3)...)); err != nil {
			return err
		}
	}
	return nil
}
