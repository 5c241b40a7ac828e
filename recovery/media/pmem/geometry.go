package pmem

import (
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EndRemovals returns when the blocks of files that were removed are free on the XFS in
// which fd is open: it frees them in the background, and until then those that had them,
// too, seem to share them. It needs CAP_SYS_ADMIN. No file is asked to give up what it has
// reserved, which is what the ioctl is for; it waits for removals first (xfs_blockgc_free_space
// and xfs_inodegc_flush, Linux 5.14 to 6.18; TestFreeingRightAfterTheSharer).
func EndRemovals(fd int) error {
	const (
		xfsIocFreeEofblocks = 0x8080583a // _IOR('X', 58, struct xfs_fs_eofblocks)
		version             = 1
		minSize             = 1 << 4 // XFS_EOF_FLAGS_MINFILESIZE
	)
	var request struct {
		version, flags uint32
		_              [4]uint32
		minSize        uint64
		_              [12]uint64
	}
	request.version, request.flags, request.minSize = version, minSize, math.MaxInt64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), xfsIocFreeEofblocks, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("waiting for removed files (FREE_EOFBLOCKS): %w", errno)
	}
	return nil
}

// xfsGeometry is struct xfs_fsop_geom_v1 (fs/xfs/libxfs/xfs_fs.h).
type xfsGeometry struct {
	_     [92]byte
	flags uint32
	_     [16]byte
}

// SharesBlocks reports whether files of the XFS in which fd is open (not with O_PATH) may
// share blocks: whether it has reflink, which is said when it is made.
func SharesBlocks(fd int) (bool, error) {
	const (
		xfsIocFsgeometryV1 = 0x80705864 // _IOR('X', 100, struct xfs_fsop_geom_v1), all Linux; flags of reflink since 4.9
		reflink            = 1 << 20    // XFS_FSOP_GEOM_FLAGS_REFLINK
	)
	var g xfsGeometry
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), xfsIocFsgeometryV1, uintptr(unsafe.Pointer(&g))); errno != 0 {
		return false, fmt.Errorf("asking XFS whether files share blocks (FSGEOMETRY): %w", errno)
	}
	return g.flags&reflink != 0, nil
}
