// Package scan reads every byte of a tree, gently, and says which can't be read.
//
// Files are read in the order of their names, past the page cache where that is
// possible, so that a scan that was interrupted can go on where it was (Cursor).
// Holes are not read: no memory stands behind them. Nothing is changed but, on
// filesystems that insist, access times.
package scan

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Bad is a piece of a file that can't be read, in whole pages of the file.
type Bad struct {
	Path  string // below the root of the scan; "" if that is the file
	Range ranges.Range
	Err   error // of the last page of it
}

// Progress is how far a scan is.
type Progress struct {
	Path  string // where it is
	Bytes int64  // read, holes not counted
	Files int64
	Bad   int64 // bytes that can't be read
}

// Scan is one scan. The exported fields are set before Run.
type Scan struct {
	Root   string // a directory or a file; filesystems mounted below it are left out
	Cursor *Cursor
	Found  func(Bad)      // called for each
	At     func(Progress) // called often
	Skip   func(path string, err error)

	progress Progress
	at       int64    // how much of the file at progress.Path is read
	from     []string // the way to where the cursor is; nil once there
	buf      []byte
	bad      Bad // not told yet
	failures int // reads and opens that failed since the last that did not
}

// ErrOutage says that too much fails at once for it to be poison.
var ErrOutage = errors.New("nothing can be read any more: this is not poison but trouble of the device, the filesystem or the mount")

// outageAfter is how many failures without a success between them are an outage.
const outageAfter = 4096

// chunk is how much is read at once.
const chunk = 1 << 20

// Run reads all, and returns early with ctx. It lowers the priority of the
// calling goroutine's thread for good.
func (s *Scan) Run(ctx context.Context) error {
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	beGentle()
	var err error
	if s.buf, err = unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE); err != nil {
		return fmt.Errorf("memory to read into: %w", err)
	}
	defer unix.Munmap(s.buf)
	offset := int64(0)
	if s.Cursor != nil {
		s.progress, s.from, offset = s.Cursor.start()
		s.at = offset
	}
	err = s.tree(ctx, offset)
	s.tellBad()
	s.At(s.progress)
	if err != nil {
		err = errors.Join(err, s.save())
	}
	return err
}

// failed counts failures, and is an error when they are an outage.
func (s *Scan) failed(err error) error {
	if s.failures++; s.failures > outageAfter || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESHUTDOWN) {
		return fmt.Errorf("%w: %w", ErrOutage, err)
	}
	return nil
}

// cannot notes a page, or less at the end of a file, that can't be read.
func (s *Scan) cannot(r ranges.Range, err error) error {
	s.progress.Bad += r.Len
	if s.bad.Err != nil && s.bad.Path == s.progress.Path && s.bad.Range.End() == r.Off {
		s.bad.Range.Len += r.Len
	} else {
		s.tellBad()
		s.bad = Bad{s.progress.Path, r, err}
	}
	return s.failed(err)
}

func (s *Scan) tellBad() {
	if s.bad.Err != nil {
		s.Found(s.bad)
	}
	s.bad = Bad{}
}

// beGentle gives this thread the lowest priority for the disk and, since on DAX
// it is the processor that reads, for that. Scanning without is no less right.
func beGentle() {
	const idle = 3 << 13 // IOPRIO_CLASS_IDLE
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, 1 /* IOPRIO_WHO_PROCESS */, 0, idle)
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
}
