package pmem

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Extent is a part of a file that lies in one piece on the device of its
// filesystem.
type Extent struct {
	File   ranges.Range
	Device int64  // where the first byte of File lies
	Flags  uint32 // FIEMAP_EXTENT_*
}

// The flags of FIEMAP (linux/fiemap.h) that mean something here.
const (
	flagUnknown   = 0x2
	flagDelalloc  = 0x4
	flagEncoded   = 0x8
	flagEncrypted = 0x80
	flagUnaligned = 0x100
	flagInline    = 0x200
	flagTail      = 0x400
	flagUnwritten = 0x800
	flagShared    = 0x2000
)

// Shared reports whether other files, or other parts of this one, have the same
// blocks (reflink).
func (e Extent) Shared() bool { return e.Flags&flagShared != 0 }

// Unwritten reports whether the blocks are reserved only: the file reads as
// zeros there, whatever they hold.
func (e Extent) Unwritten() bool { return e.Flags&flagUnwritten != 0 }

// Usable reports whether the bytes on the device are the bytes of the file.
func (e Extent) Usable() bool {
	return e.Flags&(flagUnknown|flagDelalloc|flagEncoded|flagEncrypted|flagUnaligned|flagInline|flagTail|flagUnwritten) == 0
}

// On is where the extent lies on the device.
func (e Extent) On() ranges.Range { return ranges.Range{Off: e.Device, Len: e.File.Len} }

// Within is the part of the extent in r.
func (e Extent) Within(r ranges.Range) Extent {
	in := e.File.Intersect(r)
	return Extent{File: in, Device: e.Device + in.Off - e.File.Off, Flags: e.Flags}
}

// ErrRealtime says that a file lies on the realtime device of its filesystem:
// where on that it lies is no place on the filesystem's own.
var ErrRealtime = errors.New("the file lies on the realtime device")

// Extents is where the bytes r of the file open at fd lie, in order and cut to
// r; holes have no extent. It is a snapshot: the filesystem may move blocks at
// any time. What waits in the page cache for a place has none yet, so who has
// to know of such data calls fsync before; files on DAX keep nothing there.
func Extents(fd int, r ranges.Range) ([]Extent, error) {
	var found []Extent
	for e, err := range EachExtent(fd, r) {
		if err != nil {
			return nil, err
		}
		found = append(found, e)
	}
	return found, nil
}

// EachExtent is Extents for files that may have millions of them: it asks for a few at
// a time. With an error it ends.
func EachExtent(fd int, r ranges.Range) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if !r.Empty() && onRealtime(fd) {
			yield(Extent{}, ErrRealtime)
			return
		}
		for !r.Empty() {
			batch, last, err := fiemap(fd, r)
			if err != nil {
				yield(Extent{}, fmt.Errorf("asking where the file lies (FIEMAP): %w", err))
				return
			}
			for _, e := range batch {
				if e = e.Within(r); !e.File.Empty() && !yield(e, nil) {
					return
				}
			}
			if last || len(batch) == 0 || batch[len(batch)-1].File.End() <= r.Off {
				return
			}
			r = ranges.Between(batch[len(batch)-1].File.End(), r.End())
		}
	}
}

const (
	fiemapIoctl  = 0xc020660b // FS_IOC_FIEMAP
	fiemapExtent = 56         // sizeof(struct fiemap_extent)
	fiemapBatch  = 64
	flagLast     = 0x1 // FIEMAP_EXTENT_LAST
)

// fiemap asks for as many extents as fit one request.
func fiemap(fd int, r ranges.Range) (found []Extent, last bool, err error) {
	var request struct {
		Start, Length                  uint64
		Flags, Mapped, Count, Reserved uint32
		Extents                        [fiemapBatch]struct {
			Logical, Physical, Length uint64
			_                         [2]uint64
			Flags                     uint32
			_                         [3]uint32
		}
	}
	const _ = -(unsafe.Sizeof(request.Extents[0]) ^ fiemapExtent)
	request.Start, request.Length, request.Count = uint64(r.Off), uint64(r.Len), fiemapBatch
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fiemapIoctl, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return nil, false, errno
	}
	for _, e := range request.Extents[:min(request.Mapped, fiemapBatch)] {
		last = e.Flags&flagLast != 0
		if e.Logical > math.MaxInt64 || e.Length > math.MaxInt64-e.Logical || e.Physical > math.MaxInt64-e.Length {
			return nil, false, fmt.Errorf("an extent of %d bytes at %d: %w", e.Length, e.Logical, unix.EOVERFLOW)
		}
		found = append(found, Extent{File: ranges.Range{Off: int64(e.Logical), Len: int64(e.Length)}, Device: int64(e.Physical), Flags: e.Flags})
	}
	return found, last || request.Mapped < fiemapBatch, nil
}

// onRealtime asks XFS; no other filesystem has such a device.
func onRealtime(fd int) bool {
	const (
		getFsxattr = 0x801c581f // FS_IOC_FSGETXATTR
		realtime   = 0x1        // FS_XFLAG_REALTIME
	)
	var attr [28]byte // struct fsxattr, which begins with its flags
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getFsxattr, uintptr(unsafe.Pointer(&attr)))
	return errno == 0 && attr[0]&realtime != 0
}
