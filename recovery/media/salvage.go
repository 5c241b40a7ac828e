package media

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// failsByPage reports whether a filesystem of this type fails reads in
// whole pages, so that asking for less of a page is in vain. Through the page
// cache a folio is read whole (mm/filemap.c, filemap_read_folio); on DAX the
// list is asked in whole pages (fs/dax.c, dax_iomap_iter; measured on 6.1 and
// 6.12: one byte of a good sector is EIO).
func failsByPage(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return true // an outage: ask for no more
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// Salvage asks the device where it can, and otherwise the file.
func (f *realFile) Salvage(buf []byte, off int64) ([]ranges.Range, int64) {
	if d := f.Device(); d != nil {
		missing, granularity, _ := d.Salvage(buf, off)
		return missing, granularity
	}
	return f.salvage(buf, off)
}

// salvage asks for less than the page where the filesystem may answer that
// (FUSE, and those that we don't know): for its sectors, and for the lines of
// sectors that fail.
func (f *realFile) salvage(buf []byte, off int64) ([]ranges.Range, int64) {
	all := ranges.Range{Off: off, Len: int64(len(buf))}
	st, err := f.Stat()
	if err != nil || failsByPage(f.fd) {
		return []ranges.Range{all}, ranges.PageSize
	}
	r := newReader(f.fd, f.turn)
	defer r.close()
	s := salvage{reader: r, buf: buf, off: off, finest: ranges.PageSize}
	inside := ranges.Between(off, min(all.End(), st.Size))
	clear(buf[inside.Len:]) // past the end of the file
	s.ask(inside, ranges.PageSize)
	return s.missing.Slice(), s.finest
}

// salvage is one page being salvaged.
type salvage struct {
	reader  *reader
	buf     []byte // stands for the bytes from off
	off     int64
	finest  int64 // unit asked for
	missing ranges.Set
	away    bool // the failures are not of single bytes any more
}

// ask reads the pieces of r that lie in different units, and asks for what
// does not come in the next finer unit.
func (s *salvage) ask(r ranges.Range, unit int64) {
	s.finest = min(s.finest, unit)
	for !r.Empty() {
		piece := r.Intersect(ranges.Range{Off: r.Off, Len: 1}.Widen(unit))
		r = ranges.Between(piece.End(), r.End())
		rest := s.read(piece)
		if rest.Off > piece.Off && !rest.Empty() && unit == ranges.LineSize {
			rest = s.read(rest) // a short count names the byte: ask behind it once more
		}
		switch {
		case rest.Empty():
		case s.away || unit == ranges.LineSize:
			s.missing.Add(rest)
		case unit == ranges.PageSize:
			s.ask(rest, ranges.SectorSize)
		default:
			s.ask(rest, ranges.LineSize)
		}
	}
}

// read is one read of r, and returns what of it did not come.
func (s *salvage) read(r ranges.Range) ranges.Range {
	if s.away {
		return r
	}
	n, err := s.reader.pread(s.buf[r.Off-s.off:r.End()-s.off], r.Off)
	s.away = err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EFAULT) && !errors.Is(err, unix.EHWPOISON)
	return ranges.Between(r.Off+int64(n), r.End())
}

// reader reads a file past the page cache where that is possible, through a
// descriptor of its own.
type reader struct {
	turn   *turn
	fd     int // the caller's
	direct int // O_DIRECT, or -1
	both   int // how many lines that fail directly are still to be asked for plainly
	page   []byte
}

func newReader(fd int, turn *turn) *reader {
	direct, err := reopen(fd, unix.O_DIRECT)
	if err != nil {
		direct = -1
	}
	return &reader{turn: turn, fd: fd, direct: direct, both: ranges.SectorSize / ranges.LineSize, page: alignedPage()}
}

// pread reads at most a page.
func (r *reader) pread(p []byte, off int64) (int, error) {
	if r.direct < 0 {
		return r.plain(p, off)
	}
	n, err := r.turn.pread(r.direct, r.page[:len(p)], off)
	if err == nil && n == 0 { // somebody else's read may have cut it, see plain
		lookAgain(r.fd)
		n, err = r.turn.pread(r.direct, r.page[:len(p)], off)
	}
	if err == nil || !errors.Is(err, unix.EINVAL) && (len(p) >= ranges.SectorSize || r.both == 0) {
		return copy(p, r.page[:n]), err
	}
	// Less than a sector may be more than the server below can do directly,
	// whatever errno it has for that.
	r.both--
	n, err = r.plain(p, off)
	if err == nil && n == len(p) {
		r.both = ranges.PageSize // it can't: ask for all lines this way
	}
	return n, err
}

// plain reads through the page cache. The kernel's FUSE takes a short answer for the
// end of the file, and gives nothing of what lies behind, not even with O_DIRECT, until
// somebody asks for the size (fuse_short_read and fuse_direct_IO, Linux 6.18;
// TestSalvageBehindAShortAnswer).
func (r *reader) plain(p []byte, off int64) (int, error) {
	n, err := r.turn.pread(r.fd, p, off)
	if err == nil && n < len(p) {
		lookAgain(r.fd)
	}
	return n, err
}

// lookAgain has the kernel ask the filesystem for the size of the file.
func lookAgain(fd int) {
	var st unix.Statx_t
	_ = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &st) // an outage: the reads say so
}

func (r *reader) close() {
	if r.direct >= 0 {
		_ = unix.Close(r.direct) // only read from
	}
}

// reopen opens the file at fd once more, for reading with the given flags.
func reopen(fd int, flags int) (int, error) {
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the file once more: %w", err)
	}
	return again, nil
}

// alignedPage is a page of memory that O_DIRECT takes.
func alignedPage() []byte {
	buf := make([]byte, 2*ranges.PageSize)
	skip := -uintptr(unsafe.Pointer(&buf[0])) & (ranges.PageSize - 1)
	return buf[skip : skip+ranges.PageSize : skip+ranges.PageSize]
}
