package pmem

import (
	"errors"
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Kind is what a part of a device is used for.
type Kind int

const (
	Unknown  Kind = iota // data, but the filesystem does not know whose: ext4, XFS without rmapbt
	File                 // data of the file Ino
	Metadata             // of the filesystem, or of the file Ino (its map, its attributes)
	Free
)

func (k Kind) String() string {
	switch k {
	case File:
		return "file"
	case Metadata:
		return "metadata"
	case Free:
		return "free"
	}
	return "unknown"
}

// Owner is whose a part of a device is. With reflink several own the same bytes.
type Owner struct {
	Device ranges.Range
	Ino    uint64 // 0: no file
	Off    int64  // in the file, of the first byte of Device; meaningless without Ino
	Kind   Kind
	Shared bool
}

// ErrNoMap says that a filesystem can't say whose its blocks are, or not to this
// user.
var ErrNoMap = errors.New("the filesystem has no map of its blocks for us (GETFSMAP)")

// Owners is whose the bytes r of the device are, of the filesystem in which fd
// is open, in order and cut to r. Bytes for which no Owner comes are of unknown
// use. It needs CAP_SYS_ADMIN to learn of files.
func Owners(fd int, r ranges.Range) ([]Owner, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	dev := uint32(encodeDev(st.Dev))
	low := fsmap{Device: dev, Physical: uint64(r.Off)}
	high := fsmap{Device: dev, Flags: math.MaxUint32, Physical: uint64(r.End() - 1), Owner: math.MaxUint64, Offset: math.MaxUint64}
	var found []Owner
	for !r.Empty() {
		batch, err := getfsmap(fd, low, high)
		if err != nil {
			return nil, err
		}
		for _, m := range batch {
			if o := m.owner(r); !o.Device.Empty() && m.Device == dev {
				found = append(found, o)
			}
		}
		if len(batch) == 0 || batch[len(batch)-1].Flags&fsmapLast != 0 {
			break
		}
		low = batch[len(batch)-1]
	}
	return found, nil
}

// fsmap is struct fsmap of linux/fsmap.h.
type fsmap struct {
	Device, Flags                   uint32
	Physical, Owner, Offset, Length uint64
	_                               [3]uint64
}

const (
	fsmapIoctl = 0xc0c0583b // FS_IOC_GETFSMAP
	fsmapBatch = 64

	fsmapAttr    = 0x2
	fsmapOfMap   = 0x4
	fsmapShared  = 0x8
	fsmapSpecial = 0x10
	fsmapLast    = 0x20

	ownFree    = 1
	ownUnknown = 2
	ownCOW     = 'X'<<32 | 7 // XFS keeps it for a copy that is not made yet
)

func getfsmap(fd int, low, high fsmap) ([]fsmap, error) {
	var request struct {
		InFlags, OutFlags, Count, Entries uint32
		_                                 [6]uint64
		Keys                              [2]fsmap
		Records                           [fsmapBatch]fsmap
	}
	request.Count, request.Keys = fsmapBatch, [2]fsmap{low, high}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsmapIoctl, uintptr(unsafe.Pointer(&request)))
	switch errno {
	case 0:
		return request.Records[:min(request.Entries, fsmapBatch)], nil
	case unix.ENOTTY, unix.EOPNOTSUPP, unix.EPERM:
		return nil, fmt.Errorf("%w: %w", ErrNoMap, errno)
	}
	return nil, fmt.Errorf("asking whose the blocks are (GETFSMAP): %w", errno)
}

// owner is what the record says of r.
func (m fsmap) owner(r ranges.Range) Owner {
	if m.Physical > math.MaxInt64 || m.Length > math.MaxInt64-m.Physical {
		return Owner{}
	}
	all := ranges.Range{Off: int64(m.Physical), Len: int64(m.Length)}
	o := Owner{Device: all.Intersect(r), Kind: File, Shared: m.Flags&fsmapShared != 0}
	switch special := m.Flags&fsmapSpecial != 0; {
	case special && (m.Owner == ownUnknown || m.Owner == ownCOW):
		o.Kind = Unknown
	case special && m.Owner == ownFree:
		o.Kind = Free
	case special:
		o.Kind = Metadata
	default:
		o.Ino, o.Off = m.Owner, int64(m.Offset)+o.Device.Off-all.Off
		if m.Flags&(fsmapAttr|fsmapOfMap) != 0 {
			o.Kind = Metadata
		}
	}
	return o
}
