// Package media is what lies below the recovery engine: an open backing file
// that can be read, written, allocated and asked about its failures.
//
// There are two media: the real file (New), and simulated poison over a real
// file (package sim). The engine never knows which it has.
package media

import (
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Medium opens the engine's view of backing files.
type Medium interface {
	// Open wraps the file open at fd. fd stays the caller's: File never closes
	// it, and is used only while it is open.
	Open(fd int) File
	// Source is the word for where this medium's poison comes from, used in
	// events and ledger: "kernel" or "simulated".
	Source() string
	// KernelCopies reports whether copy_file_range(2) on the files below can
	// neither share blocks between files nor pass over poison.
	KernelCopies() bool
}

// File is one open backing file. Errors are errno values (unix.Errno),
// possibly wrapped. All methods may be called concurrently.
type File interface {
	// Fd is the descriptor below, for what no method covers.
	Fd() int

	// Pread is exactly one pread(2), retried on EINTR only: it may be short,
	// and says n > 0 only together with a nil error.
	Pread(p []byte, off int64) (n int, err error)
	// Pwrite is exactly one pwrite(2), as Pread. What the filesystem keeps in
	// reserve is used only if uid may use it (see As).
	Pwrite(p []byte, off int64, uid uint32) (n int, err error)
	// Allocate is exactly one fallocate(2), on behalf of uid as Pwrite.
	Allocate(mode uint32, off, length int64, uid uint32) error
	// Truncate is exactly one ftruncate(2).
	Truncate(size int64) error
	// Sync is fdatasync(2) or, if full, fsync(2).
	Sync(full bool) error
	// Stat asks the filesystem afresh (AT_STATX_FORCE_SYNC).
	Stat() (Stat, error)
	// SetMtime sets the modification time, ns since 1970.
	SetMtime(ns int64) error
	// IsHole reports whether no block is allocated anywhere in r.
	IsHole(r ranges.Range) (bool, error)

	// Salvage gets what can be had of a page that fails as a whole, by ways
	// other than an ordinary Pread of the page: raw sectors, part-page reads.
	// It fills buf, whose length is at most a page and which stands for the
	// bytes from off, and returns the pieces of [off, off+len(buf)) that are
	// still missing and the granularity, in bytes, at which it could ask.
	// Bytes of buf in missing pieces are undefined; those past the end of the
	// file are zero and not missing, if the size can be had.
	Salvage(buf []byte, off int64) (missing []ranges.Range, granularity int64)

	// Corroborate asks whoever keeps a list of media errors whether r holds
	// one. It never touches the data.
	Corroborate(r ranges.Range) Verdict

	// Control shows that the medium still delivers data that comes from the
	// media and not from a cache: it reads something that is not in avoid,
	// from this file or else from another of the filesystem, and asks statx and
	// fstatfs. A nil error means that failures elsewhere are isolated.
	Control(avoid *ranges.Set) error
}

// Stat is what the engine needs to know of a file. Times are ns since 1970.
type Stat struct {
	Dev          uint64
	Ino          uint64
	Size         int64
	Mtime, Ctime int64
}

// Verdict is the answer to "is this failure poison?".
type Verdict int

const (
	Unknown Verdict = iota // there is no list to ask
	Listed                 // a list says yes
	Clear                  // a complete list says no
)

func (v Verdict) String() string {
	switch v {
	case Listed:
		return "listed"
	case Clear:
		return "clear"
	}
	return "unknown"
}
