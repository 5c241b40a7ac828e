package recovery

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// P7: while nothing is known to be listed, giving blocks back on ext4 asks nobody
// anything, and on XFS looks at the list only.
func TestFreeingCleanBlocks(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for name, free := range frees {
			t.Run(kind+"/"+name, func(t *testing.T) {
				d := newDaxRig(t, kind, 6*pg)
				d.check(free(d.file))
				if n := d.medium.asked.Load(); n > 0 {
					t.Errorf("the device was asked %d times", n)
				}
				if n := d.medium.looked.Load(); (n > 0) != (kind == "xfs") {
					t.Errorf("the list was looked at %d times", n)
				}
			})
		}
	}
}

// Where there is nothing to free no list is looked at.
func TestFreeingNothing(t *testing.T) {
	d := newDaxRig(t, "xfs", 0)
	d.check(d.file.Truncate(0, Caller{}))
	d.check(d.file.Truncate(pg, Caller{}))
	d.check(d.file.Truncate(3*pg, Caller{}))
	d.check(d.file.Allocate(0, 0, pg, Caller{}))
	if n := d.medium.looked.Load(); n > 0 {
		t.Errorf("the list was looked at %d times", n)
	}
}

// Where poison does harm in free space, what the kernel has not told of is cleared,
// too (lab facts: a write to the sysfs file).
func TestSilentAdditionIsNotFreed(t *testing.T) {
	for name, free := range frees {
		t.Run(name, func(t *testing.T) {
			d := newDaxRig(t, "xfs", 6*pg)
			d.check(d.medium.Real.Close()) // nobody looks at the list any more
			d.disk.Poison(d.fd, rng(pg+512, 512))
			d.check(free(d.file))
			d.wantNothingListed()
		})
	}
}

// A change that fails on a page that can't be cleared has taken nothing from those in
// front that could be salvaged, though programs have the file past us.
func TestFailedTruncateOfASharedFile(t *testing.T) {
	d := newDaxRig(t, "xfs", 6*pg)
	cleared, refused := rng(pg+512, 512), rng(3*pg+512, 512)
	d.bad(cleared)
	d.bad(refused)
	page := rng(3*pg, pg)
	d.medium.refused.Store(&page)
	unshare := d.ino.Share()
	err := d.file.Truncate(pg, Caller{})
	unshare()
	if Errno(err) != unix.EIO {
		t.Fatal(err)
	}
	wantBytes(t, "served", d.read(0, 6*pg), without(pattern(6*pg), cleared, refused))
	lost, reinit := d.live()
	wantSet(t, "lost", lost, refused)
	wantSet(t, "reinitialized", reinit, cleared)
}

// A file that programs have open past us is not gone with its name: it is left as it
// is until they have closed it.
func TestRemovalOfASharedFile(t *testing.T) {
	d := newDaxRig(t, "xfs", 6*pg)
	bad := rng(pg+512, 512)
	d.bad(bad)
	unshare := d.ino.Share()
	d.check(d.file.PrepareRemoval(Caller{}))
	wantBytes(t, "served", d.read(0, 6*pg), without(pattern(6*pg), bad))
	unshare()
	if d.disk.Listed().Empty() {
		t.Error("the page was rewritten")
	}
	d.check(d.file.Free())
	d.wantNothingListed()
}

// XFS lets go of the blocks of a removed file in the background: who had them too, and
// gives them up right after, is the last who can have them cleared.
func TestFreeingRightAfterTheSharer(t *testing.T) {
	for name, free := range map[string]func(*daxRig) error{
		"removed":    func(d *daxRig) error { return d.file.PrepareRemoval(Caller{}) },
		"last close": func(d *daxRig) error { return errors.Join(unix.Unlink(d.path()), d.file.Free()) },
		"truncated":  func(d *daxRig) error { return d.file.Truncate(0, Caller{}) },
		"punched": func(d *daxRig) error {
			return d.file.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 2*pg, Caller{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, other, _ := sharing(t, "rmapbt=0")
			d.check(os.Remove(other))
			d.check(free(d))
			d.wantNothingListed()
		})
	}
}

// Many pages of a file that goes are made durable together.
func TestFreeInBatches(t *testing.T) {
	for _, stride := range []int64{1, 2} {
		const pages = 4 * mendAtOnce
		d := newDaxRig(t, "xfs", pages*int(stride)*pg)
		for i := range int64(pages) {
			d.disk.Poison(d.fd, rng(i*stride*pg, 512))
		}
		d.medium.synced.Store(0)
		d.check(d.file.Free())
		d.wantNothingListed()
		if n := d.medium.synced.Load(); n > pages/mendAtOnce {
			t.Errorf("every %d. page: synced %d times", stride, n)
		}
	}
}

// A repair that can't be finished keeps a file that goes where its poison would do harm
// as free space; elsewhere it is let go of.
func TestFreeThatCannotBeFinished(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := newDaxRig(t, kind, 6*pg)
			for _, r := range []ranges.Range{rng(pg, 512), rng(4*pg, 512)} {
				d.bad(r)
			}
			d.medium.syncFails.Store(true)
			err := d.file.Free()
			d.medium.syncFails.Store(false)
			if (err != nil) != (kind == "xfs") {
				t.Error(err)
			}
			if pinned := d.engine.pins.Load() > 0; pinned != (kind == "xfs") {
				t.Errorf("pinned: %v", pinned)
			}
		})
	}
}
