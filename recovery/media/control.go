package media

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// ErrNoControl says that there was nothing to ask: no other page of the file,
// no other file, and not the device.
var ErrNoControl = errors.New("nothing else of the filesystem can be read for comparison")

// errCached says that a page would come from memory, which proves nothing.
var errCached = errors.New("the page is in the page cache")

// Control asks, in this order, another page of the file, another file of the
// filesystem, and, only if there is neither, the filesystem's device. A file
// that can be read in full because all of it is cached shows nothing: pages
// are read with O_DIRECT, or after they were seen to be not cached. The device
// can't speak for a filesystem that shut down (Alive).
func (f *realFile) Control(avoid *ranges.Set) error {
	st, err := f.Stat()
	if err == nil {
		err = Alive(f.fd)
	}
	if err != nil {
		return err
	}
	failure := readAny(f.fd, f.turn, st.Size, avoid)
	if failure == nil {
		return nil
	}
	if err := f.medium.controls.read(f.medium.root, st); err == nil || !errors.Is(err, ErrNoControl) {
		return err
	}
	if !errors.Is(failure, ErrNoControl) {
		return failure
	}
	return readDevice(f.fd, st.Dev)
}

// Alive asks the filesystem that the file at fd is on whether it goes on, and none of
// the file's data: a list of media errors, and the device, outlive it. ext4 and XFS that
// have shut down refuse to open the file once more, with EIO; statx is refused by XFS
// alone, and fstatfs by neither (Linux 6.1 and 6.12; TestShutDown in tests/lab).
func Alive(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("fstatfs: %w", err)
	}
	again, err := reopen(fd, 0)
	if err == nil {
		err = unix.Close(again)
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) { // not ours to read is no outage
		return nil
	}
	return err
}

// readAny reads one page of the file that is not in avoid from the medium.
// The error is ErrNoControl if there is none to ask.
func readAny(fd int, turn *turn, size int64, avoid *ranges.Set) error {
	failure := error(ErrNoControl)
	r := newReader(fd, turn)
	defer r.close()
	for _, page := range candidates(fd, size, avoid) {
		err := r.readMedium(page)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errCached) {
			failure = err
		}
	}
	return failure
}

// candidates are some pages with data that are not in avoid: the neighbours
// of what is avoided, the first, the last, and those in between by quarters.
func candidates(fd int, size int64, avoid *ranges.Set) []int64 {
	if avoid == nil {
		avoid = &ranges.Set{}
	}
	last := max(0, size-1)
	wanted := []int64{0, last, last / 2, last / 4, last / 4 * 3}
	if bad := avoid.Slice(); len(bad) > 0 {
		first, final := bad[0], bad[len(bad)-1]
		wanted = append([]int64{first.Off - 1, first.End(), final.Off - 1, final.End()}, wanted...)
	}
	var out []int64
	for _, off := range wanted {
		if off < 0 || off >= size {
			continue
		}
		data, err := unix.Seek(fd, ranges.Page(off).Off, unix.SEEK_DATA)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			data, err = off, nil // this filesystem knows no holes
		}
		if err != nil || data >= size {
			continue // nothing but a hole from here on; it says nothing about the medium
		}
		page := ranges.Page(data)
		if !avoid.Overlaps(page) && !slices.Contains(out, page.Off) {
			out = append(out, page.Off)
		}
	}
	return out
}

// readMedium reads the page at off, and fails with errCached rather than
// have it from the page cache.
func (r *reader) readMedium(off int64) error {
	fd := r.fd
	switch kind, err := kindOf(r.fd); {
	case err != nil:
		return err
	case kind == isMedium:
	case kind == readsDirectly && r.direct >= 0:
		fd = r.direct
	default:
		if err := evict(r.fd, off); err != nil {
			return err
		}
	}
	n, err := r.turn.pread(fd, r.page, off)
	if err == nil && n == 0 {
		return ErrNoControl // cut off meanwhile
	}
	return err
}

// kind is what stands between a read of a file and the medium.
type kind int

const (
	mayCache      kind = iota // the page cache, O_DIRECT or not (btrfs falls back to it for inline data)
	readsDirectly             // nothing, with O_DIRECT
	isMedium                  // nothing: tmpfs, DAX
)

func kindOf(fd int) (kind, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("fstatfs: %w", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	// Since Linux 6.1 ext4 and XFS tell of files for which O_DIRECT is a word only (inline, encrypted, journalled data).
	only := st.Mask&unix.STATX_DIOALIGN != 0 && st.Dio_offset_align == 0
	switch t := uint32(fs.Type); {
	case t == unix.TMPFS_MAGIC, st.Attributes&unix.STATX_ATTR_DAX != 0:
		return isMedium, nil
	case (t == unix.EXT4_SUPER_MAGIC || t == unix.XFS_SUPER_MAGIC) && !only:
		return readsDirectly, nil
	}
	return mayCache, nil
}

// evict drops the page at off from the page cache, or fails with errCached.
// That it worked is only known from cachestat(2), Linux ≥ 6.5.
func evict(fd int, off int64) error {
	if err := unix.Fadvise(fd, off, ranges.PageSize, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("fadvise(DONTNEED): %w", err)
	}
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: ranges.PageSize}, &stat, 0)
	if err != nil || stat.Cache > 0 {
		return errCached
	}
	return nil
}

// readDevice reads the first page of the block device below the file.
func readDevice(fd int, dev uint64) error {
	path, err := device(fd, dev)
	if err != nil {
		return err
	}
	raw, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", path, ErrNoControl)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(raw)
	if _, err := pread(raw, alignedPage(), 0); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// device is the path of the block device that the file lies on: by its
// number, or, where the filesystem has a number of its own (btrfs), by the source
// of its mount.
func device(fd int, dev uint64) (string, error) {
	uevent, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", unix.Major(dev), unix.Minor(dev)))
	if err == nil {
		for line := range strings.Lines(string(uevent)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
				return "/dev/" + name, nil
			}
		}
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return "", fmt.Errorf("statx: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("%w (%w)", ErrNoControl, err)
	}
	for line := range strings.Lines(string(mounts)) {
		if source, ok := mountSource(line, st.Mnt_id); ok && strings.HasPrefix(source, "/dev/") {
			return source, nil
		}
	}
	return "", ErrNoControl
}

// mountSource is the source in a line of /proc/self/mountinfo, if the line is of
// the mount with the given ID.
func mountSource(line string, id uint64) (string, bool) {
	before, after, ok := strings.Cut(line, " - ") // type, source and options come after the optional fields
	fields := strings.Fields(after)
	if !ok || len(fields) < 2 || !strings.HasPrefix(before, fmt.Sprintf("%d ", id)) {
		return "", false
	}
	return fields[1], true
}
