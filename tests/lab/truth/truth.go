// Package truth is one list of operations on files with bad sectors, and how what
// they do is told in one line. It runs on simulated poison (in this package's
// tests) and on a real kernel's (tests/lab/guest), so that the two can be compared
// cell by cell.
package truth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const (
	sector = ranges.SectorSize
	page   = ranges.PageSize
)

// Op is one row of the table.
type Op struct {
	Name  string
	Size  int64   // of the file, which holds Old everywhere and no holes
	Bad   []int64 // its bad sectors, by number
	Calls []Call
}

// Call is a system call, and how it is told.
type Call func(f media.File) string

// A World is one file with bad sectors, and who knows of them.
type World interface {
	File() media.File
	// Bad are the listed sectors below the file's written blocks, by their
	// number in the file.
	Bad() []int64
}

// Old is what the byte at off holds at first.
func Old(off int64) byte { return byte(off/sector%97) + 1 }

// fresh is what calls write.
const fresh = 0xFF

// Content is the first n bytes of a file.
func Content(n int64) []byte {
	text := make([]byte, n)
	for i := range text {
		text[i] = Old(int64(i))
	}
	return text
}

// Run makes the calls, and tells what came of each, the size, what each page
// holds, and which bad sectors are left below the file.
func (o Op) Run(w World) string {
	var said []string
	for _, call := range o.Calls {
		said = append(said, call(w.File()))
	}
	st, err := w.File().Stat()
	if err != nil {
		return fmt.Sprintf("stat: %v", err)
	}
	return fmt.Sprintf("%s | %d %s | bad %v", strings.Join(said, ", "), st.Size, holds(w.File(), st.Size), w.Bad())
}

// holds tells of each page its errno or what its sectors hold: old, new, zero
// or mixed; one capital where they all do.
func holds(f media.File, size int64) string {
	var said []string
	for off := int64(0); off < size; off += page {
		buf := make([]byte, min(page, size-off))
		n, err := f.Pread(buf, off)
		if err != nil || n < len(buf) {
			said = append(said, result(n, err))
			continue
		}
		letters := ""
		for at := 0; at < n; at += sector {
			letters += letter(buf[at:min(at+sector, n)], off+int64(at))
		}
		if strings.Count(letters, letters[:1]) == len(letters) {
			letters = strings.ToUpper(letters[:1])
		}
		said = append(said, letters)
	}
	return strings.Join(said, " ")
}

func letter(b []byte, off int64) string {
	is := func(want byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != want }) }
	switch {
	case is(Old(off)):
		return "o"
	case is(fresh):
		return "n"
	case is(0):
		return "z"
	}
	return "m"
}

// result is what a call came to: a count, or the name of the errno.
func result(n int, err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return fmt.Sprint(n)
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func read(off, n int64) Call {
	return func(f media.File) string {
		buf := make([]byte, n)
		got, err := f.Pread(buf, off)
		for i, b := range buf[:max(0, got)] {
			if b != Old(off+int64(i)) {
				return fmt.Sprintf("read %d, wrong at %d", got, off+int64(i))
			}
		}
		return "read " + result(got, err)
	}
}

func write(off, n int64) Call {
	return func(f media.File) string {
		return "write " + result(f.Pwrite(slices.Repeat([]byte{fresh}, int(n)), off, 0))
	}
}

func truncate(size int64) Call {
	return func(f media.File) string { return "truncate " + result(0, f.Truncate(size)) }
}

func allocate(mode uint32, off, n int64) Call {
	return func(f media.File) string { return "fallocate " + result(0, f.Allocate(mode, off, n, 0)) }
}

func punch(off, n int64) Call {
	return allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zero(off, n int64) Call {
	return allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func sync(full bool) Call {
	return func(f media.File) string { return "sync " + result(0, f.Sync(full)) }
}
