package pmem

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// mapDM maps a device of the device mapper, whose table has to be linear.
func (v *Volume) mapDM(name string) error {
	v.mapped = true
	if v.kernel.Table == nil {
		f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("%w that can be found: the table of %s is for root to read (%w)", ErrNotPmem, name, err)
		}
		v.mapper = f
	}
	var err error
	v.pieces, err = v.readTable()
	return err
}

// remap is the pieces as they are now: LVM may change a table while the
// filesystem is mounted.
func (v *Volume) remap() ([]piece, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.mapped {
		return v.pieces, nil
	}
	pieces, err := v.readTable()
	if err != nil {
		return nil, err
	}
	v.pieces = pieces
	return pieces, nil
}

// readTable is called with v.mu held, or before anybody else has v.
func (v *Volume) readTable() ([]piece, error) {
	ask := v.kernel.Table
	if ask == nil {
		ask = v.askMapper
	}
	table, err := ask(v.dev)
	if err != nil {
		return nil, fmt.Errorf("reading the device mapper's table: %w", err)
	}
	targets, err := ParseTable(table)
	if err != nil {
		return nil, err
	}
	var pieces []piece
	for _, t := range targets {
		dir, err := v.kernel.block(t.Dev)
		if err != nil {
			return nil, err
		}
		under, err := v.kernel.direct(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(dir), err)
		}
		if t.Start+t.Range.Len > under.volume.Len {
			return nil, fmt.Errorf("the device mapper's table reaches past the end of %s", filepath.Base(dir))
		}
		pieces = append(pieces, piece{volume: t.Range, disk: under.disk, start: under.start + t.Start})
	}
	return pieces, nil
}

// Target is one line of a dm table: Range of the device is the bytes from Start
// of the block device Dev.
type Target struct {
	Range ranges.Range
	Dev   uint64
	Start int64
}

// ParseTable reads a dm table as DM_TABLE_STATUS has it, one target a line:
// START LENGTH TYPE ARGS in sectors of 512 bytes. A target other than linear is
// ErrNotPmem: its bytes can't be found by a sum.
func ParseTable(table string) ([]Target, error) {
	var targets []Target
	next := int64(0)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		bad := fmt.Errorf("%q is no line of a device mapper's table", line)
		if len(f) < 3 {
			return nil, bad
		}
		if f[2] != "linear" {
			return nil, fmt.Errorf("%w that can be found: a target of type %q lies between", ErrNotPmem, f[2])
		}
		if len(f) != 5 {
			return nil, bad
		}
		start, err1 := sectors(f[0])
		length, err2 := sectors(f[1])
		dev, err3 := parseDev(f[3])
		on, err4 := sectors(f[4])
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || start != next || length == 0 {
			return nil, bad
		}
		next = start + length
		if next > maxSector*ranges.SectorSize || on+length > maxSector*ranges.SectorSize {
			return nil, bad
		}
		targets = append(targets, Target{Range: ranges.Range{Off: start, Len: length}, Dev: dev, Start: on})
	}
	if len(targets) == 0 {
		return nil, fmt.Errorf("%w: the device mapper's table is empty", ErrNotPmem)
	}
	return targets, nil
}

// sectors is a number of sectors, in bytes.
func sectors(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, err
	}
	if n > maxSector/2 { // so that two can be added
		return 0, strconv.ErrRange
	}
	return int64(n) * ranges.SectorSize, nil
}

// parseDev reads "MAJOR:MINOR", which is how tables name devices.
func parseDev(text string) (uint64, error) {
	major, minor, _ := strings.Cut(text, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return 0, err
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return 0, err
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}

// The ioctl DM_TABLE_STATUS (linux/dm-ioctl.h; interface 4 since Linux 2.6).
const (
	dmTableStatus = 0xc138fd0c // _IOWR(0xfd, 12, struct dm_ioctl)
	dmStatusTable = 1 << 4     // the table, not the targets' state
	dmBufferFull  = 1 << 8
)

type dmIoctl struct {
	Version     [3]uint32
	DataSize    uint32
	DataStart   uint32
	TargetCount uint32
	OpenCount   int32
	Flags       uint32
	EventNr     uint32
	_           uint32
	Dev         uint64
	Name        [128]byte
	UUID        [129]byte
	_           [7]byte
}

type dmTargetSpec struct {
	Start, Length uint64
	Status        int32
	Next          uint32
	Type          [16]byte
}

// askMapper is the table of the device dev, as text.
func (v *Volume) askMapper(dev uint64) (string, error) {
	for size := 16 << 10; size <= 1<<20; size *= 4 {
		buf := make([]uint64, size/8)
		head := (*dmIoctl)(unsafe.Pointer(&buf[0]))
		head.Version = [3]uint32{4, 0, 0}
		head.DataSize, head.DataStart = uint32(size), uint32(unsafe.Sizeof(*head))
		head.Flags = dmStatusTable
		head.Dev = encodeDev(dev)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, v.mapper.Fd(), dmTableStatus, uintptr(unsafe.Pointer(head))); errno != 0 {
			return "", errno
		}
		if head.Flags&dmBufferFull == 0 {
			raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), size)
			return tableText(raw[min(head.DataStart, uint32(size)):], int(head.TargetCount))
		}
	}
	return "", fmt.Errorf("it is too long: %w", unix.E2BIG)
}

// tableText makes text of what DM_TABLE_STATUS returns.
func tableText(data []byte, count int) (string, error) {
	var text strings.Builder
	const specSize = int(unsafe.Sizeof(dmTargetSpec{}))
	for at := 0; count > 0; count-- {
		if at < 0 || at+specSize > len(data) {
			return "", fmt.Errorf("it ends early: %w", unix.EIO)
		}
		var spec dmTargetSpec
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&spec)), specSize), data[at:])
		args, _, _ := strings.Cut(string(data[at+specSize:]), "\x00")
		kind, _, _ := strings.Cut(string(spec.Type[:]), "\x00")
		fmt.Fprintf(&text, "%d %d %s %s\n", spec.Start, spec.Length, kind, args)
		at = int(spec.Next) // from the first spec
	}
	return text.String(), nil
}

// encodeDev is a device number as ioctls have it (huge_encode_dev, new_encode_dev).
func encodeDev(dev uint64) uint64 {
	major, minor := uint64(unix.Major(dev)), uint64(unix.Minor(dev))
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}
