package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// scratch is what was tried on files of the backing that never have a name:
// they are gone with their descriptors, whatever happens to this process.
type scratch struct {
	open    trial  // such files can be made
	dax     answer // STATX_ATTR_DAX: a new file bypasses the page cache
	flagDAX trial  // FS_XFLAG_DAX can be set on a file
	mapSync trial  // mmap with MAP_SYNC
	clone   trial  // FICLONE: files can share blocks

	fill      trial // a file can be given content; the rest takes that
	direct    trial // reading 512 bytes with O_DIRECT
	punch     trial // a page can be punched out, and written again
	zeroRange trial // a page can be zeroed by fallocate
	blocks    blocks
}

// fileSize of scratch files: a page for each of the two ways of fallocate.
const fileSize = 2 * ranges.PageSize

// askScratch tries it all, unless the backing is a mendfs mount.
func (f *facts) askScratch(dir int) {
	s := &f.scratch
	if f.medium.mount.fstype == "fuse.mendfs" {
		s.open = untried("a mendfs mount is not the place to try it")
		return
	}
	fd, err := newScratch(dir)
	if s.open = tried(err); err != nil {
		return
	}
	defer unix.Close(fd)
	s.dax = daxAttribute(fd, "", unix.AT_EMPTY_PATH)
	s.mapSync = tried(tryMapSync(fd))
	s.flagDAX = onAnother(dir, setDAXFlag)
	s.clone = onAnother(dir, func(other int) error { return unix.IoctlFileClone(other, fd) })
	s.askContent(fd, f.medium.device)
}

// askContent tries what takes a file with blocks.
func (s *scratch) askContent(fd int, d device) {
	if d.mayRefuse() {
		s.fill = untried("a new file could get a bad block that can't be cleared (XFS shuts down then)")
		return
	}
	content := pattern()
	if s.fill = tried(fill(fd, content)); !s.fill.works() {
		return
	}
	s.direct = tried(tryDirect(fd, content))
	s.blocks.ask(fd, content, d)
	s.punch = tried(tryFallocate(fd, unix.FALLOC_FL_PUNCH_HOLE, 0, content))
	s.zeroRange = tried(tryFallocate(fd, unix.FALLOC_FL_ZERO_RANGE, ranges.PageSize, content))
}

// mayRefuse reports whether there may be bad blocks in free space that a write
// does not clear (facts of the lab: an allocating write that lands on one shuts
// XFS down, on 6.1 and 6.12).
func (d device) mayRefuse() bool {
	listed := d.badblocks != nil || d.list == nil || !d.list.Complete || !d.list.Bad.Empty()
	return d.pmem() && listed && d.bus.clears() != yes
}

// newScratch is a new file that nobody can give a name.
func newScratch(dir int) (int, error) {
	fd, err := unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOENT) {
		return -1, fmt.Errorf("files without a name: %w", unix.EOPNOTSUPP) // what open(2) says of those that know no O_TMPFILE
	}
	return fd, err
}

// onAnother makes a further file for try.
func onAnother(dir int, try func(fd int) error) trial {
	fd, err := newScratch(dir)
	if err != nil {
		return untried(cause(err))
	}
	defer unix.Close(fd)
	return tried(try(fd))
}

// pattern is content that each sector of the file has in another way.
func pattern() []byte {
	content := make([]byte, fileSize)
	for i := range content {
		content[i] = byte(i/ranges.SectorSize*31 + i*7 + 1)
	}
	return content
}

// fill writes the content so that it has blocks, and these have it.
func fill(fd int, content []byte) error {
	n, err := unix.Pwrite(fd, content, 0)
	if err == nil && n < len(content) {
		err = unix.ENOSPC
	}
	if err != nil {
		return err
	}
	return unix.Fsync(fd)
}

// daxAttribute is STATX_ATTR_DAX of a file, where the filesystem tells it.
func daxAttribute(dir int, name string, flags int) answer {
	var st unix.Statx_t
	err := unix.Statx(dir, name, flags, unix.STATX_TYPE, &st)
	if err != nil || st.Attributes_mask&unix.STATX_ATTR_DAX == 0 {
		return unknown
	}
	return answerOf(st.Attributes&unix.STATX_ATTR_DAX != 0)
}

// tryMapSync maps the file, and never touches the mapping.
func tryMapSync(fd int) error {
	mapped, err := unix.Mmap(fd, 0, fileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)
	if err != nil {
		return err
	}
	return unix.Munmap(mapped)
}

var errWrongBytes = errors.New("other bytes than the file has")

// tryDirect reads the second sector alone.
func tryDirect(fd int, content []byte) error {
	direct, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(direct)
	sector := aligned(ranges.SectorSize)
	n, err := unix.Pread(direct, sector, ranges.SectorSize)
	if err == nil && !bytes.Equal(sector[:n], content[ranges.SectorSize:2*ranges.SectorSize]) {
		err = errWrongBytes
	}
	return err
}

// aligned is memory that O_DIRECT takes.
func aligned(n int) []byte {
	buf := make([]byte, n+ranges.PageSize)
	skip := -uintptr(unsafe.Pointer(&buf[0])) & (ranges.PageSize - 1)
	return buf[skip:][:n:n]
}

// tryFallocate takes the page at off away, and writes it again.
func tryFallocate(fd int, mode uint32, off int64, content []byte) error {
	if err := unix.Fallocate(fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, ranges.PageSize); err != nil {
		return err
	}
	page := make([]byte, ranges.PageSize)
	if _, err := unix.Pread(fd, page, off); err != nil {
		return err
	}
	if !bytes.Equal(page, make([]byte, ranges.PageSize)) {
		return errWrongBytes
	}
	_, err := unix.Pwrite(fd, content[off:][:ranges.PageSize], off)
	return err
}

// fsxattr is struct fsxattr of linux/fs.h. The numbers are those of all
// machines but mips, powerpc and sparc, where the answer is ENOTTY.
type fsxattr struct {
	xflags uint32
	_      [24]byte
}

const (
	fsGetXattr = 0x801c581f
	fsSetXattr = 0x401c5820
	xflagDAX   = 0x8000
)

// setDAXFlag marks an empty file for DAX, and sees whether the mark stays.
func setDAXFlag(fd int) error {
	var x fsxattr
	if err := ioctl(fd, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return err
	}
	x.xflags |= xflagDAX
	if err := ioctl(fd, fsSetXattr, unsafe.Pointer(&x)); err != nil {
		return err
	}
	if err := ioctl(fd, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return err
	}
	if x.xflags&xflagDAX == 0 {
		return unix.EOPNOTSUPP
	}
	return nil
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
