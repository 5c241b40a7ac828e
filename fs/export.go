package fs

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// File handles of the mount (name_to_handle_at) are what the kernel's FUSE
// makes of a node id and its generation. Where the backing makes its own of
// inode number and generation, both are told to the kernel as they are. A
// handle of a file that the kernel has forgotten then comes back as
// LOOKUP(node id, "."), the file is found by its number, and the kernel compares
// the generation in the reply: handles last over FORGET and over a new mount.
// Elsewhere (tmpfs and FUSE as the backing) node ids are counted, and a handle is
// stale once its file is forgotten.

// export is how a filesystem makes its file handles: of an inode number, 64 bits
// wide or 32, and a generation, and of nothing else. All files of a
// filesystem have the same kind.
type export struct {
	kind  int32
	wide  bool
	xfs   bool // which finds a number with its very generation only, and can be asked for it
	whole bool // the root is that of the filesystem: every file is below it
}

// The handles of Linux 6.18 (fs/libfs.c, fs/xfs/xfs_export.c; TestExport).
const (
	ino32gen      = 1    // FILEID_INO32_GEN: u32 ino, u32 generation
	xfsIno64gen   = 0x81 // with XFS_FILEID_TYPE_64FLAG: u64 ino, u32 generation
	extRootIno    = 2    // EXT4_ROOT_INO
	handleRoom    = 128  // MAX_HANDLE_SZ
	xfsSuperMagic = 0x58465342
)

// exportOf is how the filesystem of the directory open at mount makes its
// handles; nil if handles don't last, or hold more than that.
func exportOf(mount int) *export {
	var fs unix.Statfs_t
	var st unix.Statx_t
	h, err := handleOf(mount)
	if err != nil || unix.Fstatfs(mount, &fs) != nil || statx(mount, &st) != nil {
		return nil
	}
	e := &export{kind: h.kind, wide: h.kind == xfsIno64gen, xfs: fs.Type == xfsSuperMagic}
	if fs.Type != unix.EXT4_SUPER_MAGIC && !e.xfs || e.kind != ino32gen && !(e.wide && e.xfs) {
		return nil
	}
	if _, ok := e.generation(mount, st.Ino); !ok {
		return nil
	}
	if e.xfs {
		root, err := bulkstat(mount, bulkRoot, bulkSpecial)
		e.whole = err == nil && root.ino == st.Ino
	} else {
		e.whole = st.Ino == extRootIno
	}
	return e
}

// handle is the handle of an inode.
func (e *export) handle(ino uint64, generation uint32) unix.FileHandle {
	var b []byte
	if e.wide {
		b = binary.NativeEndian.AppendUint64(b, ino)
	} else {
		b = binary.NativeEndian.AppendUint32(b, uint32(ino))
	}
	return unix.NewFileHandle(e.kind, binary.NativeEndian.AppendUint32(b, generation))
}

// generation is that of the file at fd, whose inode number is ino.
func (e *export) generation(fd int, ino uint64) (generation uint32, ok bool) {
	h, err := handleOf(fd)
	if err != nil || h.kind != e.kind {
		return 0, false
	}
	b := h.data[:]
	if e.wide {
		return binary.NativeEndian.Uint32(b[8:]), h.size == 12 && binary.NativeEndian.Uint64(b) == ino
	}
	return binary.NativeEndian.Uint32(b[4:]), h.size == 8 && uint64(binary.NativeEndian.Uint32(b)) == ino
}

// find opens (O_PATH) the file with an inode number, whatever its generation.
func (e *export) find(mount int, ino uint64) (fd int, err error) {
	if !e.wide && ino > 1<<32-1 {
		return -1, unix.ESTALE
	}
	var generation uint32 // ext4 takes 0 for any
	if e.xfs {
		found, err := bulkstat(mount, ino, 0)
		if err != nil || found.ino != ino {
			return -1, unix.ESTALE // no such file, or the daemon may not ask
		}
		generation = found.generation
	}
	h := e.handle(ino, generation)
	err = again(func() (err error) {
		fd, err = unix.OpenByHandleAt(mount, h, unix.O_PATH|unix.O_CLOEXEC)
		return err
	})
	return fd, err
}

// rawHandle is struct file_handle.
type rawHandle struct {
	size uint32
	kind int32
	data [handleRoom]byte
}

// handleOf is name_to_handle_at without its allocations: every new inode
// comes by here.
func handleOf(fd int) (h rawHandle, err error) {
	var empty byte
	var mount int32
	h.size = handleRoom
	_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&mount)), unix.AT_EMPTY_PATH, 0)
	if errno != 0 {
		return h, errno
	}
	return h, nil
}

const (
	xfsIocBulkstat = 0x8040587f // XFS_IOC_BULKSTAT, Linux 5.4; needs CAP_SYS_ADMIN
	bulkSpecial    = 1 << 1     // XFS_BULK_IREQ_SPECIAL
	bulkRoot       = 1          // XFS_BULK_IREQ_SPECIAL_ROOT
)

// bulkRecord is the part of struct xfs_bulkstat that is of use here.
type bulkRecord struct {
	ino        uint64
	_          [7]uint64
	generation uint32
	_          [124]byte
}

// bulkstat asks XFS for the first inode from number ino on.
func bulkstat(mount int, ino uint64, flags uint32) (bulkRecord, error) {
	var request struct {
		ino            uint64
		flags          uint32
		wanted, filled uint32
		_              uint32
		_              [5]uint64
		bulkRecord
	}
	request.ino, request.flags, request.wanted = ino, flags, 1
	err := again(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(mount), xfsIocBulkstat, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err == nil && request.filled == 0 {
		err = unix.ENOENT
	}
	return request.bulkRecord, err
}

// find opens (O_PATH) the file that the kernel has called id before it forgot
// it, if that lies below the root.
//
// Below a sub-directory of a filesystem a handle may name any file of it, so
// the place has to be shown: of a directory by going up; of other files by the
// name that the backing kernel has in its cache, and checks on the way from the
// root to it. A file without one is stale.
func (t *table) find(id uint64) (fd int, err error) {
	if t.export == nil || id == t.rootKey.ino || id >= counted {
		return -1, unix.ESTALE
	}
	if fd, err = t.export.find(t.mount, id); err != nil {
		return -1, err
	}
	if !t.export.whole && !t.below(fd) {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return -1, unix.ESTALE
	}
	return fd, nil
}

func (t *table) below(fd int) bool {
	var st unix.Statx_t
	if statx(fd, &st) != nil || keyOf(&st).dev != t.rootKey.dev {
		return false
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return t.climbs(fd)
	}
	found, err := unix.Openat2(t.root, fileid.Path(t.root, fd), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return false
	}
	defer unix.Close(found)
	k := keyOf(&st)
	return statx(found, &st) == nil && keyOf(&st) == k
}

// maxDepth bounds how far a directory is followed up.
const maxDepth = 1 << 14

// climbs reports whether the root is above the directory fd, or is that.
func (t *table) climbs(fd int) bool {
	at, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	defer func() { _ = unix.Close(at) }() // O_PATH, or -1
	var last key
	for range maxDepth {
		var st unix.Statx_t
		if err != nil || statx(at, &st) != nil {
			return false
		}
		k := keyOf(&st)
		if k == t.rootKey || k == last { // the latter: the top, past the root
			return k == t.rootKey
		}
		last = k
		var up int
		if up, err = parentOf(at); err == nil {
			_ = unix.Close(at) // O_PATH
			at = up
		}
	}
	return false
}

func parentOf(dir int) (fd int, err error) {
	err = again(func() (err error) {
		fd, err = unix.Openat(dir, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}
