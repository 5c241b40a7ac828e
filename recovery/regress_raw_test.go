package recovery

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// grownPoison is a rig whose file shares page 1, of which all but one sector was read
// before more of it became listed: the image has what nobody else has any more.
func grownPoison(t *testing.T, size int, more ranges.Range) (d *daxRig, old []byte) {
	t.Helper()
	d, _, bad := sharingOf(t, "rmapbt=0", size)
	old = without(pattern(size), bad)
	wantBytes(t, "first read", d.read(0, int64(size)), old)
	d.bad(more)
	wantBytes(t, "second read", d.read(0, int64(size)), old)
	return d, old
}

// P4, P5: the device has cleared the page, and nobody has written it: that is told from
// newer data, also where other pages of the file were written on the way.
func TestKillWhileAPageIsCuredAgain(t *testing.T) {
	for _, fresh := range []ranges.Range{rng(pg+1000, 5), rng(pg, pg), rng(100, pg)} {
		t.Run(fmt.Sprint(fresh), func(t *testing.T) {
			d, old := grownPoison(t, 4*pg, rng(pg, pg))
			if !d.crashAt(failpoint.PageZeroed, 1, func() { d.write(fresh.Off, filled('n', int(fresh.Len))) }) {
				t.Fatal("the repair never came there")
			}
			d.start()
			got := d.read(0, 4*pg)
			copy(got[fresh.Off:], old[fresh.Off:fresh.End()]) // that write never returned
			wantBytes(t, "after the crash", got, old)
		})
	}
}

// What a program writes to the cleared page before the next mount is newer, and stays.
func TestNewerDataInACuredPage(t *testing.T) {
	d, _ := grownPoison(t, 4*pg, rng(pg, pg))
	if !d.crashAt(failpoint.PageZeroed, 1, func() { d.write(pg+1000, []byte("fresh")) }) {
		t.Fatal("the repair never came there")
	}
	f, err := os.OpenFile(d.path(), os.O_WRONLY, 0)
	d.check(err)
	newer := filled('o', 512)
	_, err = f.WriteAt(newer, pg+2048)
	d.check(errors.Join(err, f.Close()))
	d.start()
	wantBytes(t, "after the crash", d.read(pg+2048, 512), newer)
	if len(d.journal.Kept()) != 1 {
		t.Errorf("the image is not kept")
	}
}

// P4: the device has cleared the page, and there is no room for this file's copy of it.
// What was salvaged is served, in this mount and those to come, without what the refused
// write wanted, until there is room.
func TestNoRoomForACuredPage(t *testing.T) {
	for _, c := range []struct {
		size  int
		fresh ranges.Range
	}{
		{4 * pg, rng(pg+1000, 5)}, {4 * pg, rng(pg, pg)}, {2*pg - 1000, rng(pg, pg-1000)}, {2*pg - 1000, rng(pg, pg-500)},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			d, old := grownPoison(t, c.size, rng(pg, pg))
			for range 2 { // the second finds the page cleared
				d.medium.noRoom.Store(true)
				n, err := d.file.Write(filled('n', int(c.fresh.Len)), c.fresh.Off, false, Caller{})
				d.medium.noRoom.Store(false)
				if n != 0 || Errno(err) != unix.EIO {
					t.Fatalf("write = %d, %v", n, err)
				}
				wantBytes(t, "after the failure", d.read(0, int64(c.size)), old)
				d.write(0, old[:pg]) // the ctime moves on
				d.remount()
				wantBytes(t, "after a remount", d.read(0, int64(c.size)), old)
			}
			d.wantNothingListed()
			d.write(pg, []byte("x"))
			old[pg] = 'x'
			wantBytes(t, "below", d.below(), old)
			if left := d.journal.Pages(d.idOf(d.path()).Key()); !left.Empty() {
				t.Errorf("images left of %v", left)
			}
		})
	}
}

// A replay that clears sectors of the page on the device, and then has no room either.
func TestReplayHasNoRoomForACuredPage(t *testing.T) {
	const at = pg + 7*512 + 10 // in the sector that stays as it is
	d, old := grownPoison(t, 4*pg, rng(pg, 7*512))
	if !d.crashAt(failpoint.PageZeroing, 1, func() { d.write(at, []byte("fresh")) }) {
		t.Fatal("the repair never came there")
	}
	copy(old[at:], "fresh")
	d.startEngine()
	d.medium.noRoom.Store(true)
	d.check(d.engine.Replay())
	d.open()
	d.medium.noRoom.Store(false)
	if len(d.disk.Written()) == 0 {
		t.Fatal("replay did not come to the device")
	}
	wantBytes(t, "after the replay", d.read(0, 4*pg), old)
	d.remount()
	wantBytes(t, "after a remount", d.read(0, 4*pg), old)
}

// A truncate on XFS that fails keeps the images of the pages between those it cleared:
// of page 2, which another file shares, and which nobody may clear here.
func TestUnrepairedPagesBetweenKeepTheirImages(t *testing.T) {
	d := newDaxRig(t, "xfs", 8*pg, "-m", "reflink=1,rmapbt=0")
	f, err := os.OpenFile(d.put("other", nil), os.O_WRONLY, 0)
	d.check(err)
	d.check(unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{Src_fd: int64(d.fd), Src_offset: 2 * pg, Src_length: pg}))
	d.check(f.Close())
	bad := []ranges.Range{rng(pg+512, 512), rng(2*pg+512, 512), rng(3*pg+512, 512), rng(5*pg+512, 512)}
	for _, b := range bad {
		d.bad(b)
	}
	want := without(pattern(8*pg), bad...)
	wantBytes(t, "first read", d.read(0, 8*pg), want)
	d.bad(rng(2*pg, pg))
	wantBytes(t, "second read", d.read(0, 8*pg), want)
	refused := rng(5*pg, pg)
	d.medium.refused.Store(&refused)
	if err := d.file.Truncate(pg, Caller{}); Errno(err) != unix.EIO {
		t.Fatalf("truncate: %v", err)
	}
	wantBytes(t, "after a truncate that failed", d.read(0, 8*pg), want)
}

// One page that won't clear does not keep those behind it from it.
func TestReinitializeGoesOnBehindARefusal(t *testing.T) {
	d := newDaxRig(t, "xfs", 6*pg)
	d.bad(rng(pg+512, 512))
	d.bad(rng(3*pg+512, 512))
	d.read(0, 6*pg)
	refused := rng(pg, pg)
	d.medium.refused.Store(&refused)
	var at *RepairError
	if err := d.file.Reinitialize(); !errors.As(err, &at) || at.Page != refused {
		t.Errorf("Reinitialize: %v", err)
	}
	left, _, err := d.file.below.Device().Listed(rng(0, 6*pg))
	d.check(err)
	wantSet(t, "listed", left, refused)
	d.medium.refused.Store(nil)
	d.check(d.file.Reinitialize())
	d.wantNothingListed()
}

// Who holds the inode for it asks for all bad pages at once, not one by one.
func TestReinitializeAsksOnceWhereNothingIsListed(t *testing.T) {
	const n = 200
	d := newDaxRig(t, "ext4", n*pg)
	for i := range int64(n / 2) {
		d.disk.Poison(d.fd, rng(2*i*pg, 512))
	}
	d.read(0, n*pg)
	d.disk.SetList("")
	before := d.medium.corroborated.Load()
	d.check(d.file.Reinitialize())
	if asked := d.medium.corroborated.Load() - before; asked > 1 {
		t.Errorf("the list was asked %d times", asked)
	}
}
