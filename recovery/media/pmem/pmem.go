// Package pmem is what the Linux kernel knows of persistent memory: which bytes
// it lists as bad, where the bytes of a file lie, and whose the bytes of a
// device are. It reads and clears single sectors past the filesystem.
//
// A Volume is the block device of a filesystem. All offsets are bytes of that
// device, as FIEMAP and GETFSMAP count them, unless a name says otherwise.
package pmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// ErrNotPmem says that a filesystem does not lie on persistent memory, or not
// so that its bytes can be found there.
var ErrNotPmem = errors.New("not on persistent memory")

// ErrHidden says that a block device is not in /sys, where the kernel shows them all:
// nobody knows then whether it is persistent memory.
var ErrHidden = errors.New("the device can't be seen in /sys: mount sysfs there, or take away what covers it")

// Volume is the block device that a filesystem lies on: a pmem disk, a partition
// of one, or linear pieces of some (LVM). All methods may be called concurrently.
type Volume struct {
	kernel Kernel
	dev    uint64
	name   string // of the device node
	sector int64  // the smallest read that the device takes
	mapped bool   // by the device mapper, whose table may change

	mu     sync.RWMutex // guards all below; held, shared, while raw or writer is used
	pieces []piece
	mapper *os.File // where dm is asked; nil for others
	raw    Block    // read only
	writer Block    // nil before AllowZero
	why    error    // there is no raw, or no writer
}

// piece is a part of the volume in one pmem disk.
type piece struct {
	volume ranges.Range
	disk   string // its name in /sys/block
	start  int64  // on the disk
}

// Open finds the block device of the filesystem whose files have the device
// number dev (st_dev) and opens it for raw reads, if that is allowed. It
// fails with ErrNotPmem where it is not all on pmem disks, and with ErrHidden where it can't
// be told.
//
// Open must come before the process gives its rights away; nothing else of a
// Volume needs more than to read /sys.
func Open(dev uint64) (*Volume, error) { return Kernel{}.Open(dev) }

// Open is the function Open, asking this kernel.
func (k Kernel) Open(dev uint64) (*Volume, error) {
	v := &Volume{kernel: k, dev: dev}
	dir, err := k.block(dev)
	if err != nil {
		return nil, err
	}
	v.name = k.node(filepath.Base(dir))
	if err := v.mapDevice(dir); err != nil {
		v.closeFiles()
		return nil, err
	}
	v.sector = k.logicalBlock(dir)
	v.raw, v.why = v.openRaw(unix.O_RDONLY)
	return v, nil
}

// Name is the path of the device, as /dev/pmem0.
func (v *Volume) Name() string { return v.name }

// Dev is the device number of the filesystem.
func (v *Volume) Dev() uint64 { return v.dev }

// Disks is the names of the pmem disks below, as /sys/block has them.
func (v *Volume) Disks() []string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var names []string
	seen := map[string]bool{}
	for _, p := range v.pieces {
		if !seen[p.disk] {
			seen[p.disk] = true
			names = append(names, p.disk)
		}
	}
	return names
}

// Sector is where the byte at off lies: the disk, by its name in /sys/block, and
// the 512-byte sector of it, as badblocks counts. disk is "" past the end.
func (v *Volume) Sector(off int64) (disk string, sector int64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, p := range v.pieces {
		if p.volume.Contains(ranges.Range{Off: off, Len: 1}) {
			return p.disk, (p.start + off - p.volume.Off) / ranges.SectorSize
		}
	}
	return "", 0
}

// fromDisk is the bytes of the volume that lie in r of a disk.
func fromDisk(pieces []piece, disk string, r ranges.Range) (found []ranges.Range) {
	for _, p := range pieces {
		on := ranges.Range{Off: p.start, Len: p.volume.Len}.Intersect(r)
		if p.disk == disk && !on.Empty() {
			found = append(found, on.Shift(p.volume.Off-p.start))
		}
	}
	return found
}

// Close lets go of the device. No method may be called afterwards.
func (v *Volume) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.closeFiles()
}

func (v *Volume) closeFiles() error {
	var err error
	for _, b := range []Block{v.raw, v.writer} {
		if b != nil {
			err = errors.Join(err, b.Close())
		}
	}
	if v.mapper != nil {
		err = errors.Join(err, v.mapper.Close())
	}
	v.raw, v.writer, v.mapper = nil, nil, nil
	v.why = fmt.Errorf("%w: %w", ErrNoRaw, os.ErrClosed)
	return err
}
