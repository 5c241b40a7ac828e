package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a filesystem of the test's own: an image file, on a loop device
// while it is mounted.
type Disk struct {
	Image string
	At    string // where it is mounted

	t      testing.TB
	kind   string
	device string    // "": not mounted
	media  *BadMedia // what the image lies on, if that can fail
}

// NewDisk makes a filesystem in a sparse image and mounts it.
func NewDisk(t testing.TB, kind string, mib int64, mkfs ...string) *Disk {
	t.Helper()
	Need(t, Loop, Filesystem(kind))
	return newDisk(t, &Disk{Image: filepath.Join(Dir(t), "image"), kind: kind}, mib, mkfs...)
}

// NewFailingDisk is NewDisk with a device that can fail, in reads and writes.
func NewFailingDisk(t testing.TB, kind string, mib int64) *Disk {
	t.Helper()
	Need(t, Loop, Filesystem(kind))
	media := NewBadMedia(t)
	return newDisk(t, &Disk{Image: filepath.Join(media.At, "image"), kind: kind, media: media}, mib)
}

func newDisk(t testing.TB, d *Disk, mib int64, mkfs ...string) *Disk {
	t.Helper()
	d.t, d.At = t, subdir(t, "d")
	if err := os.WriteFile(d.Image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.Image, mib<<20); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs."+d.kind, append(mkfs, "-q", d.Image)...)
	t.Cleanup(d.end)
	d.Mount()
	return d
}

func (d *Disk) run(program string, args ...string) string {
	d.t.Helper()
	r := Run(d.t, program, args...)
	if r.Exit != 0 {
		d.t.Fatalf("%s %s: exit %d: %s%s", program, strings.Join(args, " "), r.Exit, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Mount attaches and mounts.
func (d *Disk) Mount() {
	d.t.Helper()
	d.device = d.run("losetup", "--find", "--show", d.Image)
	d.run("mount", "-t", d.kind, d.device, d.At)
}

// Unmount unmounts and detaches; nothing of the filesystem is in memory
// afterwards.
func (d *Disk) Unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.At, 0); err != nil {
		d.t.Fatalf("unmounting %s: %v", d.At, err)
	}
	d.run("losetup", "--detach", d.device)
	d.device = ""
}

// end takes the disk away, if need be by force, which fails the test.
func (d *Disk) end() {
	if d.media != nil {
		d.media.Outage(false)
	}
	if d.device == "" {
		return
	}
	if MountedAs(d.t, d.At) != "" {
		if err := unix.Unmount(d.At, 0); err != nil {
			d.t.Errorf("unmounting %s: %v; detaching it", d.At, err)
			if err := unix.Unmount(d.At, unix.MNT_DETACH); err != nil {
				d.t.Error(err)
			}
		}
	}
	d.run("losetup", "--detach", d.device)
}

// Flip changes a byte in each of the pieces of the image that equal one of
// the given pages: the filesystem's checksums of them are wrong from then on.
// The disk is not mounted meanwhile. Each page must be found exactly once.
func (d *Disk) Flip(pages ...[]byte) {
	d.t.Helper()
	d.Unmount()
	image, err := os.OpenFile(d.Image, os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer image.Close()
	all, err := os.ReadFile(d.Image)
	if err != nil {
		d.t.Fatal(err)
	}
	for i, page := range pages {
		at := bytes.Index(all, page)
		if at < 0 || at%Page != 0 || bytes.Contains(all[at+1:], page) {
			d.t.Fatalf("page %d of those to be flipped is not once, at a block, in the image (%d)", i, at)
		}
		if _, err := image.WriteAt([]byte{page[100] ^ 0xff}, int64(at)+100); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := image.Sync(); err != nil {
		d.t.Fatal(err)
	}
	d.Mount()
}

// ShutDown makes the filesystem refuse everything from now on, as it does
// itself when it meets damage it can't go on with: EIO (FS_IOC_SHUTDOWN of
// ext4 and XFS, Linux ≥ 4.11).
func (d *Disk) ShutDown() {
	d.t.Helper()
	const ioctlShutdown, noLogFlush = 0x8004587d, 2
	root, err := os.Open(d.At)
	if err != nil {
		d.t.Fatal(err)
	}
	defer root.Close()
	if err := unix.IoctlSetPointerInt(int(root.Fd()), ioctlShutdown, noLogFlush); err != nil {
		d.t.Fatal(fmt.Errorf("shutting down %s: %w", d.At, err))
	}
}

// Fail makes the device of a NewFailingDisk fail, until the end of the test.
func (d *Disk) Fail() {
	d.t.Helper()
	d.media.Outage(true)
}
