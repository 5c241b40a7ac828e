// Package pmemtest is a block device that a test may take for persistent memory:
// a loop device with a filesystem, a directory for /sys, and a list of bad sectors
// that the device goes by as the kernel's driver does: listed sectors can't be read,
// and are listed no more once they are written.
package pmemtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Disk is the device and its filesystem.
type Disk struct {
	At string // where it is mounted

	t    testing.TB
	sys  string
	dev  string
	loop string

	list sync.Mutex // held while the list is changed

	mu      sync.Mutex // guards all below
	refuse  bool
	onRead  func()
	written []ranges.Range
	dead    ranges.Range // can't be read, listed or not
	latent  ranges.Set   // bad, and not listed before they are read
	touched ranges.Set   // of these: to be listed soon
}

// New makes a filesystem of the kind, with room for some files.
func New(t testing.TB, kind string, mkfs ...string) *Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may have a loop device")
	}
	program := "mkfs." + kind
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(program + " is not installed")
	}
	dir := t.TempDir()
	d := &Disk{t: t, At: filepath.Join(dir, "at"), sys: filepath.Join(dir, "sys"), dev: filepath.Join(dir, "dev")}
	image := filepath.Join(dir, "image")
	d.check(errors.Join(os.Mkdir(d.At, 0o755), os.WriteFile(image, nil, 0o600), os.Truncate(image, 320<<20)))
	if kind == "ext4" {
		mkfs = append(mkfs, "-b", "4096") // as DAX wants it
	}
	d.run(program, append(mkfs, "-q", image)...)
	d.loop = d.run("losetup", "--find", "--show", image)
	t.Cleanup(func() { d.run("losetup", "--detach", d.loop) })
	d.run("mount", "-t", kind, d.loop, d.At)
	t.Cleanup(func() {
		if err := unix.Unmount(d.At, 0); err != nil {
			t.Errorf("unmounting: %v", err)
			_ = unix.Unmount(d.At, unix.MNT_DETACH) // said already
		}
	})
	d.makeSys(320 << 20)
	return d
}

// makeSys makes what /sys would have.
func (d *Disk) makeSys(size int64) {
	block := filepath.Join(d.sys, "devices", "pmem0")
	dev := d.Dev()
	d.check(errors.Join(
		os.MkdirAll(filepath.Join(block, "queue"), 0o755),
		os.MkdirAll(filepath.Join(d.sys, "dev", "block"), 0o755),
		os.MkdirAll(filepath.Join(d.sys, "block"), 0o755),
		os.Mkdir(d.dev, 0o755),
		os.Symlink(block, filepath.Join(d.sys, "dev", "block", fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)))),
		os.Symlink(block, filepath.Join(d.sys, "block", "pmem0")),
		os.Symlink(d.loop, filepath.Join(d.dev, "pmem0")),
		os.WriteFile(filepath.Join(block, "size"), fmt.Appendln(nil, size/ranges.SectorSize), 0o644),
	))
	d.SetLogicalBlock(ranges.SectorSize)
	d.SetList("")
}

// SetLogicalBlock says how large the device's sectors are; for Open to come.
func (d *Disk) SetLogicalBlock(n int) {
	d.t.Helper()
	d.check(os.WriteFile(filepath.Join(d.sys, "devices", "pmem0", "queue", "logical_block_size"), fmt.Appendln(nil, n), 0o644))
}

// SetList is the text of badblocks.
func (d *Disk) SetList(text string) {
	d.t.Helper()
	// In one write, to the file that is there, as long as ever: nobody reads half of
	// it, and who has it open sees the change.
	if n := listLen - len(text); n > 0 {
		text += strings.Repeat("\n", n)
	}
	f, err := os.OpenFile(d.listPath(), os.O_CREATE|os.O_WRONLY, 0o644)
	d.check(err)
	_, err = f.WriteAt([]byte(text), 0)
	d.check(errors.Join(err, f.Truncate(int64(len(text))), f.Close()))
}

// listLen is shorter than what is taken for a text that was cut.
const listLen = 4000

func (d *Disk) listPath() string { return filepath.Join(d.sys, "devices", "pmem0", "badblocks") }

// Dev is the device number of the filesystem.
func (d *Disk) Dev() uint64 {
	d.t.Helper()
	var st unix.Stat_t
	d.check(unix.Stat(d.At, &st))
	return st.Dev
}

// Volume is the device as mendfs knows it, until the end of the test.
func (d *Disk) Volume() *pmem.Volume {
	d.t.Helper()
	v, err := d.Kernel().Open(d.Dev())
	d.check(err)
	d.t.Cleanup(func() { d.check(v.Close()) })
	return v
}

// Kernel is the kernel that has the device.
func (d *Disk) Kernel() pmem.Kernel {
	return pmem.Kernel{Sys: d.sys, Dev: d.dev, Block: func(f *os.File) pmem.Block { return block{f, d} }}
}

// Listed is what is listed now.
func (d *Disk) Listed() *ranges.Set {
	d.t.Helper()
	text, err := os.ReadFile(d.listPath())
	d.check(err)
	list, err := pmem.ParseBadblocks(string(text))
	d.check(err)
	return &list.Bad
}

// Clear takes r off the list.
func (d *Disk) Clear(r ranges.Range) {
	d.change(func(listed *ranges.Set) { listed.Remove(r) })
}

func (d *Disk) change(how func(*ranges.Set)) {
	d.list.Lock()
	defer d.list.Unlock()
	s := d.Listed()
	how(s)
	var text strings.Builder
	for r := range s.All() {
		fmt.Fprintf(&text, "%d %d\n", r.Off/ranges.SectorSize, r.Len/ranges.SectorSize)
	}
	d.SetList(text.String())
}

// Poison lists the sectors of r of the file open at fd, which is made durable
// first.
func (d *Disk) Poison(fd int, r ranges.Range) {
	d.t.Helper()
	d.check(unix.Fsync(fd))
	extents, err := pmem.Extents(fd, r.Widen(ranges.SectorSize))
	d.check(err)
	if len(extents) == 0 {
		d.t.Fatalf("%v of the file lies nowhere", r)
	}
	d.change(func(listed *ranges.Set) {
		for _, e := range extents {
			listed.Add(e.On())
		}
	})
}

// Refuse says whether the device refuses to clear from now on.
func (d *Disk) Refuse(refuse bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = refuse
}

// Refuses reports what Refuse said.
func (d *Disk) Refuses() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refuse
}

// OnRead has do called before each read of the device.
func (d *Disk) OnRead(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onRead = do
}

// Latent poisons r of the file open at fd so that nobody knows it yet.
func (d *Disk) Latent(fd int, r ranges.Range) {
	d.t.Helper()
	d.check(unix.Fsync(fd))
	extents, err := pmem.Extents(fd, r.Widen(ranges.SectorSize))
	d.check(err)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range extents {
		d.latent.Add(e.On())
	}
}

// listLate is how long the kernel takes to list what a read has run into.
const listLate = 50 * time.Millisecond

// Touch reports whether a read of r of the device runs into latent poison, which
// is listed a moment later.
func (d *Disk) Touch(r ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for bad := range ranges.Of(d.latent.Slice()...).Within(r) {
		if d.touched.Overlaps(bad) {
			continue
		}
		d.touched.Add(bad)
		time.AfterFunc(listLate, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.latent.Remove(bad)
			d.touched.Remove(bad)
			d.change(func(listed *ranges.Set) { listed.Add(bad) })
		})
	}
	return d.latent.Overlaps(r)
}

// KillPage has no sector of the page at off of the device be readable, as when
// the kernel has taken it out of its map.
func (d *Disk) KillPage(off int64, dead bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = ranges.Range{}
	if dead {
		d.dead = ranges.Range{Off: off, Len: ranges.PageSize}
	}
}

// Written is what was written past the filesystem.
func (d *Disk) Written() []ranges.Range {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

func (d *Disk) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) run(program string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// block is the device, opened once.
type block struct {
	*os.File
	disk *Disk
}

func (b block) ReadAt(p []byte, off int64) (int, error) {
	b.disk.mu.Lock()
	do, dead := b.disk.onRead, b.disk.dead
	b.disk.mu.Unlock()
	if do != nil {
		do()
	}
	r := ranges.Range{Off: off, Len: int64(len(p))}
	if dead.Overlaps(r) || b.disk.Touch(r) || b.disk.Listed().Overlaps(r) {
		return 0, unix.EIO
	}
	return b.File.ReadAt(p, off)
}

func (b block) WriteAt(p []byte, off int64) (int, error) {
	r := ranges.Range{Off: off, Len: int64(len(p))}
	if b.disk.Refuses() && b.disk.Listed().Overlaps(r) {
		return 0, unix.EIO
	}
	b.disk.mu.Lock()
	b.disk.written = append(b.disk.written, r)
	b.disk.mu.Unlock()
	b.disk.Clear(r)
	return b.File.WriteAt(p, off)
}
