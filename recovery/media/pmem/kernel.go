package pmem

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Kernel says where the kernel is asked. The zero Kernel is the one that runs;
// tests name directories of their own.
type Kernel struct {
	Sys   string                           // instead of /sys
	Dev   string                           // instead of /dev
	Table func(dev uint64) (string, error) // dm's table of the device, instead of dm's own word
	Block func(*os.File) Block             // what reads and writes of the device go through
}

// Block is an open block device.
type Block interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

func (k Kernel) sys(elem ...string) string {
	return filepath.Join(append([]string{cmp.Or(k.Sys, "/sys")}, elem...)...)
}

func (k Kernel) node(name string) string { return filepath.Join(cmp.Or(k.Dev, "/dev"), name) }

// block is the directory of a block device in /sys.
func (k Kernel) block(dev uint64) (string, error) {
	link := k.sys("dev", "block", fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)))
	dir, err := filepath.EvalSymlinks(link)
	if errors.Is(err, os.ErrNotExist) && unix.Major(dev) != 0 { // 0: of a filesystem without a device (Documentation/admin-guide/devices.txt)
		return "", fmt.Errorf("device %d:%d: %w", unix.Major(dev), unix.Minor(dev), ErrHidden)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: device %d:%d is no block device", ErrNotPmem, unix.Major(dev), unix.Minor(dev))
	}
	if err != nil {
		return "", fmt.Errorf("finding the block device: %w", err)
	}
	return dir, nil
}

// pmemDisk is a disk whose addresses are those of the memory: pmem0, and
// pmem0.1 for a second namespace of the region. Those with an "s" are BTTs, which
// move sectors about, and list nothing as bad.
var pmemDisk = regexp.MustCompile(`^pmem[0-9]+(\.[0-9]+)?$`)

// mapDevice finds the pieces of the device whose directory in /sys is dir.
func (v *Volume) mapDevice(dir string) error {
	name := filepath.Base(dir)
	if _, err := os.Stat(filepath.Join(dir, "dm")); err == nil {
		return v.mapDM(name)
	}
	p, err := v.kernel.direct(dir)
	if err != nil {
		return err
	}
	v.pieces = []piece{p}
	return nil
}

// direct is the piece that a pmem disk, or a partition of one, is.
//
// No more has to be added for the start of the disk: where a namespace keeps
// its own data in front (fsdax with the page map on the media), the driver has
// taken that off for the block device and for its list alike (drivers/nvdimm/pmem.c,
// pmem_attach_disk: bb_range.start += data_offset, Linux 4.7 to 6.18; it would
// show in tests/lab, where a listed sector has to fail the right page).
func (k Kernel) direct(dir string) (piece, error) {
	size, err := readNumber(filepath.Join(dir, "size"))
	if err != nil {
		return piece{}, err
	}
	p := piece{volume: ranges.Range{Len: size * ranges.SectorSize}, disk: filepath.Base(dir)}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		start, err := readNumber(filepath.Join(dir, "start")) // 512-byte sectors, whatever the device's own are
		if err != nil {
			return piece{}, err
		}
		p.start, p.disk = start*ranges.SectorSize, filepath.Base(filepath.Dir(dir))
	}
	if !pmemDisk.MatchString(p.disk) {
		return piece{}, fmt.Errorf("%w: the disk is %s", ErrNotPmem, p.disk)
	}
	return p, nil
}

// logicalBlock is the smallest read that a device takes; of a partition, its
// disk knows.
func (k Kernel) logicalBlock(dir string) int64 {
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if n, err := readNumber(filepath.Join(d, "queue", "logical_block_size")); err == nil {
			return n
		}
	}
	return ranges.PageSize // not known: nothing smaller is safe to ask for
}

func readNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("%w (there is no %s)", ErrHidden, path)
	}
	if err != nil {
		return 0, fmt.Errorf("asking for the device: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 || n > maxSector {
		return 0, fmt.Errorf("%s says %q, which is no number of sectors", path, text)
	}
	return n, nil
}

// maxSector is the last sector whose bytes can be counted.
const maxSector = 1<<54 - 1
