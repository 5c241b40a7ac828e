package pmem

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// List is what the kernel lists as bad, in bytes of the volume.
type List struct {
	Bad ranges.Set
	// Complete is false where the list may hold more than could be read, or
	// than the kernel could note: then only its yes counts.
	Complete bool
}

// Bad reads the kernel's list afresh.
func (v *Volume) Bad() (*List, error) {
	pieces, err := v.remap()
	if err != nil {
		return nil, err
	}
	all, asked := &List{Complete: true}, map[string]bool{}
	for _, p := range pieces {
		if asked[p.disk] {
			continue
		}
		asked[p.disk] = true
		list, err := v.kernel.badblocks(p.disk)
		if err != nil {
			return nil, err
		}
		all.Complete = all.Complete && list.Complete
		for bad := range list.Bad.All() {
			for _, r := range fromDisk(pieces, p.disk, bad) {
				all.Bad.Add(r)
			}
		}
	}
	return all, nil
}

// badblocks is the list of one disk, in bytes of the disk.
func (k Kernel) badblocks(disk string) (*List, error) {
	path := k.badblocksPath(disk)
	text, err := k.readList(path)
	if err != nil {
		return nil, fmt.Errorf("the kernel's list of bad sectors: %w", err)
	}
	list, err := ParseBadblocks(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// readList refuses what is mounted over the list, as container engines do to hide files:
// an empty one would clear all pages of suspicion.
func (k Kernel) readList(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("%s: fstatfs: %w", path, err)
	}
	if k.Sys == "" && fs.Type != unix.SYSFS_MAGIC {
		return nil, fmt.Errorf("%s is not the kernel's own file: take away what is mounted over it", path)
	}
	return io.ReadAll(f)
}

func (k Kernel) badblocksPath(disk string) string { return k.sys("block", disk, "badblocks") }

// How much the kernel says and keeps (block/badblocks.c, Linux 4.5 to 6.18): one
// page of text, and one page of entries of 8 bytes.
const (
	maxText    = 4096
	longLine   = 32 // no line is longer
	maxEntries = 4096 / 8
)

// ParseBadblocks reads the text of a badblocks file: lines "SECTOR COUNT", in
// sectors of 512 bytes. A text that fills its page may have been cut: the list is
// not complete then, and of a number that was cut nothing is believed. The same
// holds for as many entries as the kernel has room for.
func ParseBadblocks(text string) (*List, error) {
	list := &List{Complete: len(text) < maxText-longLine}
	entries := 0
	for line := range strings.Lines(text) {
		cut := !strings.HasSuffix(line, "\n") && !list.Complete
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if cut && len(fields) == 1 {
			break // who knows how many digits are missing
		}
		r, err := parseEntry(fields)
		if err != nil {
			return nil, err
		}
		list.Bad.Add(r)
		entries++
	}
	if entries >= maxEntries {
		list.Complete = false
	}
	return list, nil
}

func parseEntry(fields []string) (ranges.Range, error) {
	if len(fields) != 2 {
		return ranges.Range{}, fmt.Errorf("%q is no entry of a list of bad sectors", fields)
	}
	sector, err1 := strconv.ParseUint(fields[0], 10, 64)
	count, err2 := strconv.ParseUint(fields[1], 10, 64)
	if err1 != nil || err2 != nil || sector > maxSector || count > math.MaxUint32 || sector+count > maxSector {
		return ranges.Range{}, fmt.Errorf("%q is no entry of a list of bad sectors", fields)
	}
	return ranges.Range{Off: int64(sector) * ranges.SectorSize, Len: int64(count) * ranges.SectorSize}, nil
}
