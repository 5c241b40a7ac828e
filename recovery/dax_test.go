package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// put makes a file in the backing.
func (d *daxRig) put(name string, content []byte) string {
	d.t.Helper()
	path := filepath.Join(d.backing, name)
	d.check(os.WriteFile(path, content, 0o644))
	return path
}

func wantTold(t *testing.T, told string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(told, want) {
			t.Errorf("no event says %s:\n%s", want, told)
		}
	}
}

func TestSectorsAreLostAlone(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			const size = 6*pg + 700
			d := newDaxRig(t, kind, size)
			bad := []ranges.Range{rng(0, 512), rng(3*pg+1024, 1024), rng(6*pg+512, 512)}
			for _, r := range bad {
				d.bad(r)
			}
			bad[2].Len = 188 // to the end
			wantBytes(t, "read", d.read(0, size), without(pattern(size), bad...))
			lost, _ := d.live()
			wantSet(t, "lost", lost, bad...)
			told := d.told()
			at, _ := d.file.below.Device().Place(3*pg + 1024)
			wantTold(t, told, `"granularity":512`, `"why":"sectors read from `, fmt.Sprintf(`"device":"/dev/pmem0","sector":%d,`, at.Sector))
		})
	}
}

// A page of which every sector is listed was asked for by sectors, too.
func TestAllSectorsOfAPageAreLost(t *testing.T) {
	d := newDaxRig(t, "ext4", 4*pg)
	d.bad(rng(pg, pg))
	wantBytes(t, "read", d.read(0, 4*pg), without(pattern(4*pg), rng(pg, pg)))
	rows := 0
	for row, err := range d.ledger.All(false) {
		d.check(err)
		if rows++; row.Range != rng(pg, pg) || row.Granularity != 512 {
			t.Errorf("%v in units of %d", row.Range, row.Granularity)
		}
	}
	if rows != 1 {
		t.Errorf("%d rows", rows)
	}
}

// Where the device can't be read, whole pages are lost, and the event says why.
func TestPagesAreLostWithoutTheDevice(t *testing.T) {
	d := newDaxRig(t, "ext4", 4*pg)
	d.stop()
	d.disk.SetLogicalBlock(4096)
	d.start()
	d.bad(rng(pg, 512))
	wantBytes(t, "read", d.read(0, 4*pg), without(pattern(4*pg), rng(pg, pg)))
	wantTold(t, d.told(), `"granularity":4096`, `have 4096 bytes`)
}

func TestPartOfABadPageIsWritten(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, at := range []int64{pg + 100, pg + 512, pg + 600, pg + 2000} {
			t.Run(fmt.Sprint(kind, at), func(t *testing.T) {
				d := newDaxRig(t, kind, 4*pg)
				bad := rng(pg+512, 512)
				d.bad(bad)
				fresh := []byte("fresh bytes of the application")
				d.write(at, fresh)
				want := without(pattern(4*pg), bad)
				copy(want[at:], fresh)
				wantBytes(t, "below", d.below(), want)
				d.wantNothingListed()
			})
		}
	}
}

// Firmware that refuses: the writer is told, nothing is punched, what was there is
// served, and a later write that it takes does its work.
func TestFirmwareThatRefuses(t *testing.T) {
	d := newDaxRig(t, "xfs", 4*pg)
	bad := rng(pg+512, 512)
	d.bad(bad)
	d.disk.Refuse(true)
	where, _ := d.file.below.Device().Place(pg)
	for _, r := range []ranges.Range{rng(pg, 10), rng(pg, pg)} {
		n, err := d.file.Write(make([]byte, r.Len), r.Off, false, Caller{})
		if n != 0 || Errno(err) != unix.EIO {
			t.Fatalf("write %v = %d, %v", r, n, err)
		}
	}
	wantBytes(t, "served", d.read(0, 4*pg), without(pattern(4*pg), bad))
	if now, ok := d.file.below.Device().Place(pg); !ok || now != where {
		t.Errorf("the page is at %v now, was at %v: it was freed", now, where)
	}
	d.disk.Refuse(false)
	d.write(pg, []byte("x"))
	d.wantNothingListed()
	want := without(pattern(4*pg), bad)
	want[pg] = 'x'
	wantBytes(t, "below", d.below(), want)
}

// frees are the ways to give pages 1 to 3 of a file of 6 pages back.
var frees = map[string]func(f *File) error{
	"truncate":   func(f *File) error { return f.Truncate(pg, Caller{}) },
	"to nothing": func(f *File) error { return f.Truncate(0, Caller{}) },
	"punch": func(f *File) error {
		return f.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, pg, 3*pg, Caller{})
	},
	"zero": func(f *File) error {
		return f.Allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, pg, 3*pg, Caller{})
	},
	"removal": func(f *File) error {
		if err := f.PrepareRemoval(Caller{}); err != nil {
			return err
		}
		return f.Free()
	},
}

// Blocks are clean when the filesystem gets them back, whether anybody has met
// the poison or not.
func TestFreedBlocksAreClean(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for name, free := range frees {
			for _, met := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/met=%v", kind, name, met), func(t *testing.T) {
					d := newDaxRig(t, kind, 6*pg)
					d.bad(rng(pg+512, 512))
					d.bad(rng(3*pg, 1024))
					if met {
						d.read(0, 6*pg)
					}
					d.check(free(d.file))
					d.wantNothingListed()
				})
			}
		}
	}
}

// What the device won't clear XFS must not get back; ext4 may.
func TestFreedBlocksThatCannotBeCleared(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for name, free := range frees {
			t.Run(kind+"/"+name, func(t *testing.T) {
				d := newDaxRig(t, kind, 6*pg)
				bad := rng(3*pg+512, 512)
				d.bad(bad)
				d.disk.Refuse(true)
				err := free(d.file)
				if kind == "ext4" {
					d.check(err)
				} else {
					if Errno(err) != unix.EIO {
						t.Fatal(err)
					}
					wantBytes(t, "served", d.read(0, 6*pg), without(pattern(6*pg), bad))
					if !strings.Contains(err.Error(), rng(3*pg, pg).String()) {
						t.Errorf("the error does not name the page: %v", err)
					}
				}
				if name != "removal" || kind == "xfs" {
					wantTold(t, d.told(), `"event":"repair-failed"`, `"offset":12288,`)
				}
			})
		}
	}
}

// The page that a truncate cuts in two keeps what is in front.
func TestCutPageKeepsItsHead(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := newDaxRig(t, kind, 6*pg)
			d.bad(rng(2*pg+512, 512))
			d.check(d.file.Truncate(2*pg+2000, Caller{}))
			d.wantNothingListed()
			wantBytes(t, "below", d.below(), without(pattern(6*pg), rng(2*pg+512, 512))[:2*pg+2000])
		})
	}
}

// So it is with pages that are overwritten whole, and in one call.
func TestPagesThatAreListedLate(t *testing.T) {
	d := newDaxRig(t, "ext4", 6*pg)
	for _, bad := range []ranges.Range{rng(pg+512, 512), rng(2*pg, 512), rng(3*pg+1024, 512)} {
		d.disk.Latent(d.fd, bad)
	}
	d.read(0, 6*pg)
	d.write(pg, filled('n', 3*pg))
	d.wantNothingListed()
	if d.disk.Touch(rng(0, 1<<40)) {
		t.Error("there is poison still")
	}
	want := pattern(6 * pg)
	copy(want[pg:], filled('n', 3*pg))
	wantBytes(t, "below", d.below(), want)
}

// What a read has run into is cleared by the write that follows at once: it is
// waited for the list.
func TestPoisonThatIsListedLate(t *testing.T) {
	d := newDaxRig(t, "ext4", 4*pg)
	bad := rng(pg+512, 512)
	d.disk.Latent(d.fd, bad)
	wantBytes(t, "read", d.read(pg, pg), without(pattern(4*pg), bad)[pg:2*pg])
	d.write(pg, []byte("x"))
	d.wantNothingListed()
	if d.disk.Touch(rng(0, 1<<40)) {
		t.Error("the poison is still there")
	}
	want := without(pattern(4*pg), bad)
	want[pg] = 'x'
	wantBytes(t, "below", d.below(), want)
}

// A page that somebody else has cleared is not waited for.
func TestClearedPagesAreNotWaitedFor(t *testing.T) {
	d := newDaxRig(t, "ext4", 300*pg)
	for i := range int64(256) {
		d.disk.Poison(d.fd, rng(i*pg, 512))
	}
	d.read(0, 256*pg)
	d.disk.SetList("")
	before := d.medium.corroborated.Load()
	d.write(0, filled('n', 256*pg))
	if n := d.medium.corroborated.Load() - before; n > 0 {
		t.Errorf("the list was waited for: asked %d times", n)
	}
}
