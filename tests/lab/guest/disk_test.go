//go:build lab

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

const (
	sector = ranges.SectorSize
	page   = ranges.PageSize
)

// filesystem is how to make one, and on which device.
type filesystem struct {
	name, device string
	mkfs         []string
}

// filesystems are what the tests run on, each on a device of its own.
var filesystems = []filesystem{
	{"ext4", "pmem0", []string{"mkfs.ext4", "-q", "-F", "-b", "4096"}},
	{"xfs", "pmem1", []string{"mkfs.xfs", "-q", "-f", "-m", "reflink=0,rmapbt=1"}},
	{"xfs+reflink", "pmem2", []string{"mkfs.xfs", "-q", "-f", "-m", "reflink=1,rmapbt=0"}},
}

// withOwners is XFS that shares blocks and says who does (rmapbt).
var withOwners = filesystem{"xfs+reflink", "pmem2", []string{"mkfs.xfs", "-q", "-f", "-m", "reflink=1,rmapbt=1"}}

// disk is a fresh filesystem with -o dax=always.
type disk struct {
	name   string
	device string // pmem0
	at     string // where it is mounted
}

// onEach runs the test on each filesystem.
func onEach(t *testing.T, test func(t *testing.T, d *disk)) {
	for _, fs := range filesystems {
		t.Run(fs.name, func(t *testing.T) { test(t, newDisk(t, fs)) })
	}
}

// newDisk makes and mounts a filesystem until the end of the test.
func newDisk(t *testing.T, fs filesystem) *disk {
	t.Helper()
	at, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{name: fs.name, device: fs.device, at: at}
	d.clearDevice(t)
	run(t, fs.mkfs[0], append(fs.mkfs[1:len(fs.mkfs):len(fs.mkfs)], d.path())...)
	d.mount(t)
	t.Cleanup(func() {
		run(t, "umount", at)
		d.clearDevice(t)
	})
	return d
}

// useOfFree is what scan can say of free space: XFS with rmapbt does not tell of it
// on Linux 6.1, which is seen here.
func (d *disk) useOfFree(t *testing.T) string {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if d.name == "xfs" && strings.HasPrefix(string(release), "6.1.") {
		return "unknown"
	}
	return "free"
}

func (d *disk) path() string { return "/dev/" + d.device }

// mount mounts the filesystem. XFS without DAX below mounts all the same.
func (d *disk) mount(t *testing.T) {
	t.Helper()
	run(t, "mount", "-t", strings.TrimSuffix(d.name, "+reflink"), "-o", "dax=always", d.path(), d.at)
	var st unix.Statx_t
	probe := filepath.Join(d.at, "probe")
	err := os.WriteFile(probe, nil, 0o600)
	if err == nil {
		err = unix.Statx(unix.AT_FDCWD, probe, 0, 0, &st)
	}
	if err != nil || st.Attributes&unix.STATX_ATTR_DAX == 0 {
		t.Fatalf("%s is not on DAX: %v", d.name, err)
	}
}

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// fill makes a file of the content, with all blocks in place.
func (d *disk) fill(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(d.at, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(content) > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(len(content))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return path
}

// listFile is the kernel's list of media errors of the device.
func (d *disk) listFile() string { return "/sys/block/" + d.device + "/badblocks" }

// poison puts sectors of a file onto the kernel's list, by their number in the file.
func (d *disk) poison(t *testing.T, path string, sectors ...int64) {
	t.Helper()
	for _, s := range onDevice(t, path, sectors) {
		d.poisonDevice(t, s)
	}
}

// onDevice is where sectors of a file are on the device.
func onDevice(t *testing.T, path string, sectors []int64) (on []int64) {
	t.Helper()
	extents := extentsOf(t, path)
	for _, s := range sectors {
		i := slices.IndexFunc(extents, func(e extent) bool { return e.file.Contains(ranges.Range{Off: s * sector, Len: 1}) })
		if i < 0 {
			t.Fatalf("%s has no block at sector %d", path, s)
		}
		on = append(on, (extents[i].device-extents[i].file.Off)/sector+s)
	}
	return on
}

// poisonDevice puts a sector of the device onto the kernel's list.
func (d *disk) poisonDevice(t *testing.T, sector int64) {
	t.Helper()
	if err := os.WriteFile(d.listFile(), fmt.Appendf(nil, "%d 1\n", sector), 0); err != nil {
		t.Fatal(err)
	}
}

// listed is the sectors of the device that the kernel lists.
func (d *disk) listed(t *testing.T) []int64 {
	t.Helper()
	text, err := os.ReadFile(d.listFile())
	if err != nil {
		t.Fatal(err)
	}
	var out []int64
	for line := range strings.Lines(string(text)) {
		var first, count int64
		if _, err := fmt.Sscan(line, &first, &count); err != nil {
			t.Fatalf("%v in %q", err, text)
		}
		for s := first; s < first+count; s++ {
			out = append(out, s)
		}
	}
	return out
}

// bad is the listed sectors below the written blocks of a file, by their number
// in the file.
func (d *disk) bad(t *testing.T, path string) []int64 {
	t.Helper()
	out := []int64{}
	listed := d.listed(t)
	for _, e := range extentsOf(t, path) {
		for _, s := range listed {
			if off := s*sector - e.device; !e.unwritten && off >= 0 && off < e.file.Len {
				out = append(out, (e.file.Off+off)/sector)
			}
		}
	}
	slices.Sort(out)
	return out
}

// clearDevice empties the kernel's list.
func (d *disk) clearDevice(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(d.path(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, s := range d.listed(t) {
		zeroOut(t, fd, s*sector, sector)
	}
	if left := d.listed(t); len(left) > 0 {
		t.Fatalf("%s: still listed: %v", d.device, left)
	}
}

func zeroOut(t *testing.T, fd int, off, length int64) {
	t.Helper()
	if errno := blkZeroOut(fd, off, length); errno != 0 {
		t.Fatalf("BLKZEROOUT of [%d +%d): %v", off, length, errno)
	}
}

func blkZeroOut(fd int, off, length int64) unix.Errno {
	const request = 0x127F // BLKZEROOUT, linux/fs.h
	args := [2]int64{off, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&args)))
	return errno
}

// extent is a piece of a file on the device. The tests ask the kernel themselves,
// and not by the code that they test.
type extent struct {
	file              ranges.Range
	device            int64
	unwritten, shared bool
}

func extentsOf(t *testing.T, path string) []extent {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const request = 0xC020660B // FS_IOC_FIEMAP, linux/fiemap.h
	var m struct {
		start, length                  uint64
		flags, mapped, count, reserved uint32
		extents                        [64]struct {
			logical, physical, length, r1, r2 uint64
			flags, r3, r4, r5                 uint32
		}
	}
	const sync, unwritten, shared = 1, 0x800, 0x2000
	m.length, m.flags, m.count = 1<<62, sync, uint32(len(m.extents))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&m))); errno != 0 {
		t.Fatalf("FIEMAP of %s: %v", path, errno)
	}
	var out []extent
	for _, e := range m.extents[:m.mapped] {
		out = append(out, extent{
			ranges.Range{Off: int64(e.logical), Len: int64(e.length)}, int64(e.physical),
			e.flags&unwritten != 0, e.flags&shared != 0,
		})
	}
	return out
}
