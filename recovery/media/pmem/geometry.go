package pmem

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
