package pmem_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/media/pmem/pmemtest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const (
	sector = ranges.SectorSize
	page   = ranges.PageSize
)

// file is a file of the disk with content in which no two sectors are equal.
func file(t *testing.T, d *pmemtest.Disk, name string, pages int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(d.At, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(content(pages)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f
}

func content(pages int) []byte {
	b := make([]byte, pages*page)
	for i := range b {
		b[i] = byte(1 + (i/sector*31+i)%251)
	}
	return b
}

// at is where r of the file lies.
func at(t *testing.T, f *os.File, r ranges.Range) pmem.Extent {
	t.Helper()
	extents, err := pmem.Extents(int(f.Fd()), r)
	if err != nil || len(extents) != 1 || !extents[0].Usable() {
		t.Fatalf("%v lies at %+v, %v", r, extents, err)
	}
	return extents[0]
}

func TestSectorsOfAFile(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := pmemtest.New(t, kind)
			f, v := file(t, d, "f", 8), d.Volume()
			bad := ranges.Range{Off: 3*page + 2*sector, Len: sector}
			d.Poison(int(f.Fd()), bad)
			e := at(t, f, ranges.Range{Off: 3 * page, Len: page})
			list, err := v.Bad()
			if err != nil || !list.Complete || list.Bad.Bytes() != sector || !list.Bad.Contains(ranges.Range{Off: e.Device + 2*sector, Len: sector}) {
				t.Fatalf("listed %v, %v", list, err)
			}
			if disk, n := v.Sector(e.Device + 2*sector); disk != "pmem0" || n != e.Device/sector+2 {
				t.Errorf("sector %d of %q", n, disk)
			}
			for i := range int64(8) {
				got := make([]byte, sector)
				_, err := v.ReadSectors(got, e.Device+i*sector)
				switch {
				case i == 2 && !errors.Is(err, unix.EIO):
					t.Errorf("the bad sector: %v", err)
				case i != 2 && (err != nil || !bytes.Equal(got, content(8)[3*page+i*sector:][:sector])):
					t.Errorf("sector %d: %v, or other bytes", i, err)
				}
			}
		})
	}
}

func TestZeroSectors(t *testing.T) {
	d := pmemtest.New(t, "ext4")
	f, v := file(t, d, "f", 4), d.Volume()
	r := ranges.Range{Off: page + sector, Len: 2 * sector}
	d.Poison(int(f.Fd()), r)
	e := at(t, f, r)
	if err := v.ZeroSectors(e.On()); !errors.Is(err, pmem.ErrNoRaw) {
		t.Fatalf("without AllowZero: %v", err)
	}
	if err := v.AllowZero(); err != nil {
		t.Fatal(err)
	}
	d.Refuse(true)
	if err := v.ZeroSectors(e.On()); !errors.Is(err, unix.EIO) {
		t.Fatalf("a device that refuses: %v", err)
	}
	d.Refuse(false)
	if err := v.ZeroSectors(e.On()); err != nil {
		t.Fatal(err)
	}
	if left := d.Listed(); !left.Empty() {
		t.Errorf("still listed: %v", left)
	}
	got := make([]byte, page)
	if _, err := v.ReadSectors(got, e.Device-sector); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(content(4)[page:][:page])
	clear(want[sector : 3*sector])
	if !bytes.Equal(got, want) {
		t.Error("the page on the device is not what it was with zeros for the two sectors")
	}
}

func TestNoRaw(t *testing.T) {
	d := pmemtest.New(t, "ext4")
	d.SetLogicalBlock(4096)
	v := d.Volume()
	if _, err := v.ReadSectors(make([]byte, sector), 0); !errors.Is(err, pmem.ErrNoRaw) || !errors.Is(v.CanReadSectors(), pmem.ErrNoRaw) {
		t.Errorf("4 KiB sectors: %v", err)
	}
	if err := v.AllowZero(); !errors.Is(err, pmem.ErrNoRaw) {
		t.Errorf("4 KiB sectors, for writing: %v", err)
	}
	d.SetLogicalBlock(512)
	if _, err := d.Volume().ReadSectors(make([]byte, sector), 100); !errors.Is(err, unix.EINVAL) {
		t.Errorf("in the middle of a sector: %v", err)
	}
}

func TestExtents(t *testing.T) {
	d := pmemtest.New(t, "xfs", "-m", "reflink=1")
	f := file(t, d, "f", 4)
	fd := int(f.Fd())
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, page, page); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(fd, 0, 4*page, page); err != nil {
		t.Fatal(err)
	}
	extents, err := pmem.Extents(fd, ranges.Range{Off: sector, Len: 5*page - sector})
	if err != nil {
		t.Fatal(err)
	}
	var got []ranges.Range
	unwritten := 0
	for _, e := range extents {
		got = append(got, e.File)
		if e.Unwritten() {
			unwritten++
			if e.Usable() || e.File.Off != 4*page {
				t.Errorf("unwritten, and usable or elsewhere: %+v", e)
			}
		}
	}
	all := ranges.Of(got...)
	if all.String() != "{[512 +3584) [8192 +12288)}" || unwritten != 1 {
		t.Errorf("extents %+v", extents)
	}
	// A copy shares the blocks.
	c, err := os.Create(filepath.Join(d.At, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := unix.IoctlFileClone(int(c.Fd()), fd); err != nil {
		t.Fatal(err)
	}
	if e := at(t, f, ranges.Range{Len: page}); !e.Shared() || e.Device != at(t, c, ranges.Range{Len: page}).Device {
		t.Errorf("a clone does not share: %+v", e)
	}
}

// Only an XFS that says so needs the device open for writing (mount.allowZero).
func TestSharesBlocks(t *testing.T) {
	for options, want := range map[string]bool{"reflink=1": true, "reflink=0": false} {
		d := pmemtest.New(t, "xfs", "-m", options)
		got, err := pmem.SharesBlocks(int(file(t, d, "f", 1).Fd()))
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", options, got, err)
		}
	}
	if _, err := pmem.SharesBlocks(int(file(t, pmemtest.New(t, "ext4"), "f", 1).Fd())); err == nil {
		t.Error("ext4 has answered as XFS")
	}
}

func TestOwners(t *testing.T) {
	d := pmemtest.New(t, "xfs", "-m", "rmapbt=1,reflink=1")
	f := file(t, d, "f", 16)
	e := at(t, f, ranges.Range{Off: 5 * page, Len: page})
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	owners, err := pmem.Owners(int(f.Fd()), e.On())
	if err != nil {
		t.Fatal(err)
	}
	want := pmem.Owner{Device: e.On(), Ino: st.Ino, Off: 5 * page, Kind: pmem.File}
	if len(owners) != 1 || owners[0] != want {
		t.Errorf("owners %+v, want %+v", owners, want)
	}
	whole, err := pmem.Owners(int(f.Fd()), ranges.Range{Len: 320 << 20})
	if err != nil {
		t.Fatal(err)
	}
	kinds, covered := map[pmem.Kind]int64{}, ranges.Of()
	for _, o := range whole {
		kinds[o.Kind] += o.Device.Len
		covered.Add(o.Device)
	}
	if kinds[pmem.File] < 16*page || kinds[pmem.Free] == 0 || kinds[pmem.Metadata] == 0 || covered.Count() != 1 {
		t.Errorf("the device is used for %v, and known in %d pieces", kinds, covered.Count())
	}
}

func TestOwnersOnExt4NameNoFiles(t *testing.T) {
	d := pmemtest.New(t, "ext4")
	f := file(t, d, "f", 1)
	owners, err := pmem.Owners(int(f.Fd()), at(t, f, ranges.Range{Len: page}).On())
	if err != nil || len(owners) != 1 || owners[0].Kind != pmem.Unknown || owners[0].Ino != 0 {
		t.Errorf("%+v, %v", owners, err)
	}
}

// A file of many pieces is asked about in passing: nobody holds all that it has.
func TestEachExtentAsksAsItGoes(t *testing.T) {
	f := file(t, pmemtest.New(t, "ext4"), "f", 0)
	const pieces = 1000
	for i := range int64(pieces) {
		if _, err := f.WriteAt(content(1), 2*i*page); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	all := ranges.Range{Len: math.MaxInt64}
	if extents, err := pmem.Extents(int(f.Fd()), all); err != nil || len(extents) != pieces {
		t.Fatalf("%d extents, %v", len(extents), err)
	}
	seen := 0
	for _, err := range pmem.EachExtent(int(f.Fd()), all) {
		if seen++; err != nil {
			t.Fatal(err)
		}
		if seen == 1 {
			if err := f.Truncate(0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if seen > pieces/2 {
		t.Errorf("%d extents of a file that was cut at the first", seen)
	}
}

// A change is told that comes after Watch has returned, announced or not.
func TestWatchNoticesUnannouncedChanges(t *testing.T) {
	d := pmemtest.New(t, "ext4")
	ctx, cancel := context.WithCancel(t.Context())
	changes := d.Volume().Watch(ctx, time.Millisecond)
	d.SetList("8 1\n")
	select {
	case <-changes:
	case <-time.After(20 * time.Second):
		t.Error("nothing is told")
	}
	cancel()
	for range changes { // until it is closed
	}
}
