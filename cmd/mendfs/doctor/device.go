package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// device is the block device below the filesystem, and what that consists of.
type device struct {
	path    string   // in /dev; "" if there is no block device
	names   []string // of it and of all devices below it, in /sys/block
	dax     answer   // queue/dax, of all disks
	holders []string // other block devices that lie on the same disks

	notPmem   error        // the filesystem's bytes can't be found on pmem disks
	volume    *pmem.Volume // nil if notPmem; closed by close
	disks     []string     // of pmem
	list      *pmem.List   // what the kernel lists as bad
	badblocks error        // reading that
	rawRead   error        // reading single sectors
	rawWrite  error        // clearing single sectors
	bus       bus
}

// pmem reports whether mendfs can find the filesystem's bytes on pmem disks.
func (d device) pmem() bool { return d.path != "" && d.notPmem == nil }

// hidden reports whether the device may be one of pmem for all that can be seen.
func (d device) hidden() bool { return errors.Is(d.notPmem, pmem.ErrHidden) }

func (d device) close() {
	if d.volume != nil {
		_ = d.volume.Close() // nothing was written
	}
}

// bus is the nvdimm bus that a pmem disk hangs on (Documentation/driver-api/nvdimm).
type bus struct {
	provider string   // "ACPI.NFIT", "e820", "ndtest.0"...; "" if there is none
	commands []string // that its firmware takes
}

// askDevice asks sysfs, and tries whether the device may be opened.
func (f *facts) askDevice() {
	d := &f.medium.device
	dev, own := f.deviceNumber()
	dir, err := filepath.EvalSymlinks(filepath.Join(f.from.sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))))
	if err != nil {
		if own {
			_, d.notPmem = f.from.kernel().Open(dev) // hidden
		}
		return // no block device: tmpfs, NFS, FUSE
	}
	d.path = "/dev/" + filepath.Base(dir)
	d.below(dir)
	if !own {
		d.notPmem = fmt.Errorf("%s has a map of its own from its addresses to those of its devices", f.medium.mount.fstype)
		return
	}
	if d.volume, d.notPmem = f.from.kernel().Open(dev); d.notPmem != nil {
		return
	}
	d.disks = d.volume.Disks()
	d.list, d.badblocks = d.volume.Bad()
	d.rawRead, d.rawWrite = d.volume.CanReadSectors(), d.volume.AllowZero()
	if len(d.disks) > 0 {
		d.bus = f.from.askBus(d.disks[0])
	}
}

// kernel is the one that runs, or a test's.
func (from sources) kernel() pmem.Kernel {
	if from.sys == "/sys" {
		return pmem.Kernel{}
	}
	return pmem.Kernel{Sys: from.sys}
}

// deviceNumber is that of the filesystem's block device. It is not its own if
// the filesystem has a made-up one, as btrfs has, and mountinfo names the device.
func (f *facts) deviceNumber() (dev uint64, own bool) {
	var major, minor uint32
	if _, err := fmt.Sscanf(f.medium.mount.dev, "%d:%d", &major, &minor); err == nil && major != 0 {
		return unix.Mkdev(major, minor), true
	}
	var st unix.Stat_t
	if err := unix.Stat(f.medium.mount.source, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, false
}

// below walks from the device with the directory dir in sysfs down to the disks.
func (d *device) below(dir string) {
	d.names = append(d.names, filepath.Base(dir))
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
		d.names = append(d.names, filepath.Base(dir))
	}
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves")) // of a partition or disk: none
	for _, s := range slaves {
		if under, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", s.Name())); err == nil {
			d.below(under)
		}
	}
	if len(slaves) > 0 {
		return
	}
	if text, err := os.ReadFile(filepath.Join(dir, "queue/dax")); err == nil {
		if dax := answerOf(strings.TrimSpace(string(text)) == "1"); d.dax != no {
			d.dax = dax
		}
	}
	d.holders = append(d.holders, holders(dir, d.names)...)
}

// holders is the devices that lie on the disk or a partition of it, and are not
// among our own.
func holders(dir string, own []string) (names []string) {
	for _, glob := range []string{"holders/*", "*/holders/*"} {
		found, _ := filepath.Glob(filepath.Join(dir, glob)) // the pattern is right
		for _, path := range found {
			if name := filepath.Base(path); !slices.Contains(own, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// askBus looks for the bus above a disk.
func (from sources) askBus(disk string) bus {
	dir, err := filepath.EvalSymlinks(filepath.Join(from.sys, "block", disk))
	if err != nil {
		return bus{}
	}
	for ; dir != from.sys && dir != "/"; dir = filepath.Dir(dir) {
		provider, err := os.ReadFile(filepath.Join(dir, "provider"))
		if err != nil {
			continue
		}
		commands, _ := os.ReadFile(filepath.Join(dir, "commands")) // without it there are none
		return bus{strings.TrimSpace(string(provider)), strings.Fields(string(commands))}
	}
	return bus{}
}

// clears reports whether the bus can clear poison. One without any commands,
// as of memmap= memory, is taken at its word that nothing is to be done
// (drivers/nvdimm/bus.c, nvdimm_clear_poison, 4.7 to 6.18; measured on 6.1 and
// 6.12: e820 clears, QEMU's NVDIMM, on ACPI.NFIT without clear_error, never).
func (b bus) clears() answer {
	switch {
	case b.provider == "":
		return unknown
	case slices.Contains(b.commands, "clear_error"), b.provider == "e820":
		return yes
	case b.provider == "ACPI.NFIT":
		return no
	}
	return unknown
}
