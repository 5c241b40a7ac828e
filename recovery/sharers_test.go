package recovery

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// ownerMaps are the two kinds of XFS: with and without a map of owners.
var ownerMaps = []string{"rmapbt=1", "rmapbt=0"}

// sharing is a rig whose file shares page 1, which is bad, with another.
func sharing(t *testing.T, owners string) (d *daxRig, other string, bad ranges.Range) {
	return sharingOf(t, owners, 4*pg)
}

// sharingOf is sharing with files of that size.
func sharingOf(t *testing.T, owners string, size int) (d *daxRig, other string, bad ranges.Range) {
	d = newDaxRig(t, "xfs", size, "-m", "reflink=1,"+owners)
	other = d.put("other", nil)
	f, err := os.OpenFile(other, os.O_WRONLY, 0)
	d.check(err)
	d.check(unix.IoctlFileClone(int(f.Fd()), d.fd))
	d.check(f.Close())
	bad = rng(pg+512, 512)
	d.bad(bad)
	return d, other, bad
}

// use opens another file through the engine, as a program would have it open, until
// the end of the test.
func (d *daxRig) use(path string) *File {
	d.t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	d.check(err)
	d.t.Cleanup(func() { d.check(unix.Close(fd)) })
	ino := d.engine.NewInode(fd)
	key := d.idOf(path).Key()
	d.engine.InUse(func(id fileid.ID) *Inode {
		if id.Key() != key {
			return nil
		}
		return ino
	})
	return d.engine.Open(ino, fd)
}

func (d *daxRig) idOf(path string) fileid.ID {
	d.t.Helper()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	d.check(err)
	defer unix.Close(fd)
	id, err := fileid.Of(fd)
	d.check(err)
	return id
}

func (d *daxRig) rowsOf(path string) (lost, reinit *ranges.Set) {
	d.t.Helper()
	lost, reinit, err := d.ledger.Live(d.idOf(path).Key())
	d.check(err)
	return lost, reinit
}

func (d *daxRig) wantRefused(at int64) {
	d.t.Helper()
	n, err := d.file.Write([]byte("x"), at, false, Caller{})
	if n != 0 || Errno(err) != unix.EIO {
		d.t.Fatalf("write at %d = %d, %v", at, n, err)
	}
	if w := d.disk.Written(); len(w) > 0 {
		d.t.Errorf("wrote %v to the device", w)
	}
}

// A page that files share is cured on the device itself, and who else has it is
// named, and has a row of its own.
func TestSharedPageIsCured(t *testing.T) {
	for _, owners := range ownerMaps {
		for name, fresh := range map[string]ranges.Range{"a part": rng(pg+1000, 100), "the page": rng(pg, pg)} {
			t.Run(owners+" "+name, func(t *testing.T) {
				d, other, bad := sharing(t, owners)
				lay, _ := d.file.below.Device().Place(pg)
				d.write(fresh.Off, filled('n', int(fresh.Len)))
				d.wantNothingListed()
				want := without(pattern(4*pg), bad)
				copy(want[fresh.Off:], filled('n', int(fresh.Len)))
				wantBytes(t, "the file", d.below(), want)
				b, err := os.ReadFile(other)
				d.check(err)
				wantBytes(t, "the other", b, without(pattern(4*pg), bad))
				lost, reinit := d.rowsOf(other)
				wantSet(t, "lost of the other", lost)
				wantSet(t, "reinitialized of the other", reinit, bad)
				wantTold(t, d.told(), `"action":"raw-zeroed-and-written"`,
					fmt.Sprintf(`"sector":%d,"sharers":["other [4608 +512)"]`, lay.Sector),
					`"event":"lost","path":"other"`, `"event":"reinitialized","path":"other"`)
			})
		}
	}
}

// A file can share a page with itself.
func TestPageSharedWithinAFile(t *testing.T) {
	for _, owners := range ownerMaps {
		t.Run(owners, func(t *testing.T) {
			d := newDaxRig(t, "xfs", 4*pg, "-m", "reflink=1,"+owners)
			d.check(unix.IoctlFileCloneRange(d.fd, &unix.FileCloneRange{Src_fd: int64(d.fd), Src_offset: pg, Src_length: pg, Dest_offset: 3 * pg}))
			want := d.below()
			bad := rng(pg+512, 512)
			d.bad(bad)
			d.write(pg, []byte("x"))
			want = without(want, bad, bad.Shift(2*pg))
			want[pg] = 'x'
			wantBytes(t, "read", d.read(0, 4*pg), want)
			_, reinit := d.live()
			wantSet(t, "reinitialized", reinit, bad, bad.Shift(2*pg))
		})
	}
}

func TestSharedPageThatCannotBeCured(t *testing.T) {
	d, _, bad := sharing(t, "rmapbt=1")
	d.disk.Refuse(true)
	d.wantRefused(pg)
	wantBytes(t, "served", d.read(0, 4*pg), without(pattern(4*pg), bad))
	wantTold(t, d.told(), `"action":"raw"`, "cp --reflink=never")
}

// Where a sharer can't have a row nothing is zeroed.
func TestSharersThatAreNotFound(t *testing.T) {
	for _, owners := range ownerMaps {
		for what, hide := range map[string]func(d *daxRig, other string){
			"outside of the root": func(d *daxRig, other string) {
				d.check(os.Rename(other, filepath.Join(d.disk.At, "other")))
			},
			"without a name": func(d *daxRig, other string) {
				fd, err := unix.Open(other, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				d.check(err)
				d.t.Cleanup(func() { d.check(unix.Close(fd)) })
				d.check(unix.Unlink(other))
			},
		} {
			t.Run(owners+" "+what, func(t *testing.T) {
				d, other, bad := sharing(t, owners)
				below := filepath.Join(d.disk.At, "below")
				d.check(os.Mkdir(below, 0o755))
				d.stop()
				d.check(os.Rename(d.path(), filepath.Join(below, d.name)))
				d.backing, d.state = below, t.TempDir()
				d.start()
				hide(d, other)
				d.wantRefused(pg)
				wantBytes(t, "served", d.read(0, 4*pg), without(pattern(4*pg), bad))
				wantTold(t, d.told(), `"event":"repair-failed"`, "can't be found out", "cp --reflink=never")
			})
		}
	}
}

// So it is where looking for them takes too long; the next write may have more luck.
func TestSharersThatAreNotFoundInTime(t *testing.T) {
	d, other, bad := sharing(t, "rmapbt=0")
	d.engine.patience = 0
	d.wantRefused(pg)
	lost, reinit := d.rowsOf(other)
	wantSet(t, "lost of the other", lost)
	wantSet(t, "reinitialized of the other", reinit)
	d.engine.patience = sharersPatience
	d.write(pg, []byte("x"))
	_, reinit = d.rowsOf(other)
	wantSet(t, "reinitialized of the other", reinit, bad)
	wantTold(t, d.told(), "can't be found out", "deadline")
}

// P4: what only the image of a sharer has stays there, until that file is written.
func TestSharerThatHasMoreKept(t *testing.T) {
	d, other, bad := sharing(t, "rmapbt=0")
	f := d.use(other)
	b := make([]byte, 4*pg)
	_, err := f.Read(b, 0, Caller{}) // keeps the good sectors
	d.check(err)
	more := rng(pg+2048, 512)
	d.bad(more)
	d.wantRefused(pg)
	_, err = f.Write([]byte("x"), pg, false, Caller{})
	d.check(err)
	want := without(pattern(4*pg), bad)
	want[pg] = 'x'
	_, err = f.Read(b, 0, Caller{})
	d.check(err)
	wantBytes(t, "the other", b, want)
	wantBytes(t, "the file", d.read(0, 4*pg), without(pattern(4*pg), bad, more))
	_, reinit := d.live()
	wantSet(t, "reinitialized", reinit, bad, more)
}

// P5: at no step a sharer, used or not, is told zeros that are in no row.
func TestSharerReadsZerosOnlyWithARecord(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("used=", used), func(t *testing.T) {
			d, other, bad := sharing(t, "rmapbt=0")
			f := d.use(other)
			b := make([]byte, 4*pg)
			if used {
				_, err := f.Read(b, 0, Caller{})
				d.check(err)
			}
			seen := map[failpoint.Step]bool{}
			d.onStep(func(s failpoint.Step) {
				switch s {
				case failpoint.SharersRecorded, failpoint.PageZeroed, failpoint.PageCleared, failpoint.IntentClosed:
				default:
					return
				}
				lost, reinit := d.rowsOf(other)
				if !lost.Contains(bad) && !reinit.Contains(bad) {
					t.Errorf("at %s: lost %v, reinitialized %v", s, lost, reinit)
				}
				if s == failpoint.PageZeroed && len(d.disk.Written()) == 0 {
					t.Errorf("at %s nothing is zeroed", s)
				}
				seen[s] = true
			})
			d.write(pg, []byte("x"))
			d.onStep(nil)
			if len(seen) != 4 {
				t.Errorf("saw %v", seen)
			}
			_, err := f.Read(b, 0, Caller{})
			d.check(err)
			wantBytes(t, "the other", b, without(pattern(4*pg), bad))
			if !f.ino.Damaged() {
				t.Error("the other's inode knows of no damage")
			}
			_, err = f.Write(filled('n', 512), bad.Off, false, Caller{})
			d.check(err)
			lost, reinit := d.rowsOf(other)
			wantSet(t, "lost, overwritten", lost)
			wantSet(t, "reinitialized, overwritten", reinit)
		})
	}
}

// P4 and P5 on the raw rung: whatever the instant, nothing that could be read is gone,
// and what is zero has a row, in each of the files.
func TestKillWhileASharedPageIsCured(t *testing.T) {
	for _, s := range []failpoint.Step{failpoint.IntentDurable, failpoint.PageZeroing, failpoint.SharersRecorded, failpoint.PageZeroed, failpoint.PageCleared, failpoint.PagesDurable} {
		for _, owners := range ownerMaps {
			t.Run(string(s)+" "+owners, func(t *testing.T) {
				d, other, bad := sharing(t, owners)
				fresh := []byte("fresh bytes of the application")
				if !d.crashAt(s, 1, func() { d.write(pg+1200, fresh) }) {
					t.Fatalf("the repair never came to %s", s)
				}
				d.start()
				old := without(pattern(4*pg), bad)
				want := bytes.Clone(old)
				copy(want[pg+1200:], fresh)
				got := d.read(0, 4*pg)
				if !bytes.Equal(got[pg+1200:][:len(fresh)], fresh) {
					want = old // the write had not returned
				}
				wantBytes(t, "after the crash", got, want)
				for _, path := range []string{d.path(), other} {
					lost, reinit := d.rowsOf(path)
					recorded := lost.Contains(bad) || reinit.Contains(bad)
					if zeroed := len(d.disk.Written()) > 0; zeroed && !recorded {
						t.Errorf("%v of %s is zero without a record", bad, path)
					}
				}
				if d.disk.Listed().Empty() {
					b, err := os.ReadFile(other)
					d.check(err)
					wantBytes(t, "the other", b, old)
				}
			})
		}
	}
}

// Blocks that another file has are not freed, and stay as they are.
func TestSharedBlocksStay(t *testing.T) {
	d, _, _ := sharing(t, "rmapbt=0")
	d.check(d.file.Truncate(0, Caller{}))
	if len(d.disk.Written()) > 0 || d.disk.Listed().Empty() {
		t.Errorf("wrote %v to the device", d.disk.Written())
	}
}

// A sharer that was given a page of its own, with new data, after it was found has no row
// that calls the data zero: the next read finds out.
func TestSharerThatIsWrittenMeanwhile(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("used=", used), func(t *testing.T) {
			d, other, _ := sharing(t, "rmapbt=0")
			f := d.use(other)
			if !used {
				d.engine.InUse(func(fileid.ID) *Inode { return nil })
			}
			dam, err := d.file.know()
			d.check(err)
			rep := &repair{file: d.file, damage: dam, size: 4 * pg, end: 4 * pg}
			doomed, err := d.file.below.Device().Bad()
			d.check(err)
			sharers, err := rep.findSharers(rng(pg, pg), doomed)
			d.check(err)
			_, err = f.Write(filled('n', pg), pg, false, Caller{})
			d.check(err)
			d.check(rep.recordSharers(sharers))
			rep.sharersZeroed(sharers)
			_, reinit := d.rowsOf(other)
			wantSet(t, "reinitialized", reinit)
			if !used {
				return
			}
			b := make([]byte, 4*pg)
			_, err = f.Read(b, 0, Caller{})
			d.check(err)
			want := pattern(4 * pg)
			copy(want[pg:], filled('n', pg))
			wantBytes(t, "the other", b, want)
			lost, reinit := d.rowsOf(other)
			wantSet(t, "lost, when read", lost)
			wantSet(t, "reinitialized, when read", reinit)
		})
	}
}
