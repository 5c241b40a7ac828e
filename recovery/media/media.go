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
	// AnyListed reports whether a list of media errors is known to have anything at
	// all. It asks nobody: it is called where nothing is known to be wrong.
	AnyListed() bool
	// LookListed is AnyListed after a look at the list.
	LookListed() bool
	// MustClear reports whether poison that can't be cleared does harm in free
	// space: XFS shuts down when it allocates such a block (lab facts, "Firmware
	// that will not clear"). It asks nobody.
	MustClear() bool
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

	// Device is the device that the file's bytes lie on, where single sectors of
	// it can be told apart: persistent memory. It is nil elsewhere.
	Device() Device

	// Control shows that the medium still delivers data that comes from the
	// media and not from a cache: it reads something that is not in avoid,
	// from this file or else from another of the filesystem, and asks statx and
	// fstatfs. A nil error means that failures elsewhere are isolated.
	Control(avoid *ranges.Set) error
}

// Device is what lies below one file on persistent memory. Offsets are the
// file's.
type Device interface {
	// Place is where the byte at off lies; not ok if it has no place of its own.
	Place(off int64) (at Place, ok bool)

	// Listed is the pages of r that hold sectors which are listed at this moment:
	// in blocks of the file's own, and in blocks that other files have, too
	// (reflink). Blocks that were never written have none.
	Listed(r ranges.Range) (own, shared *ranges.Set, err error)

	// Known is Listed by the last look at the list.
	Known(r ranges.Range) (own, shared *ranges.Set, err error)

	// Salvage is File.Salvage, and why it could ask at that granularity only.
	Salvage(buf []byte, off int64) (missing []ranges.Range, granularity int64, why string)

	// Bad is all bytes of the device that are listed at this moment.
	Bad() (*ranges.Set, error)

	// Zero clears a page past the filesystem: of its sectors those that are
	// listed at this moment, or, if no other sector of it can be read, the whole
	// page; that is refused where others have its unlisted bytes, too. Where
	// others have the page at all, first is called with the bytes of the device
	// that will be zero, once more if they become more, and nothing is written if
	// it fails. The journal must hold the page.
	Zero(page ranges.Range, first func(doomed *ranges.Set) error) error
}

// Place is a sector of a device.
type Place struct {
	Device string // as /dev/pmem0
	Sector int64  // of 512 bytes, as badblocks counts them
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
