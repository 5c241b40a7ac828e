package recovery

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/pmem/pmemtest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// daxMedium is the real medium on a disk with a list of bad sectors, whose files
// fail as files on DAX do (lab facts, "Core").
type daxMedium struct {
	*media.Real
	disk *pmemtest.Disk
	// How often the engine has asked for a file's device, and for its verdict.
	asked, corroborated atomic.Int64
	looked, synced      atomic.Int64 // how often the list was looked at, and files were synced

	syncFails atomic.Bool
	noRoom    atomic.Bool                  // to write clean pages
	refused   atomic.Pointer[ranges.Range] // what the firmware won't clear, of a file; nil: nothing
}

func (m *daxMedium) LookListed() bool {
	m.looked.Add(1)
	return m.Real.LookListed()
}

func (m *daxMedium) refuses(r ranges.Range) bool {
	refused := m.refused.Load()
	return refused != nil && refused.Overlaps(r)
}

func (m *daxMedium) Open(fd int) media.File { return daxFile{m.Real.Open(fd), m} }

type daxFile struct {
	media.File
	medium *daxMedium
}

func (f daxFile) Device() media.Device {
	f.medium.asked.Add(1)
	return f.File.Device()
}

// listed is the pages touched by r that are listed.
func (f daxFile) listed(r ranges.Range) (own, shared *ranges.Set) {
	own, shared, err := f.File.Device().Listed(r)
	if err != nil {
		return ranges.Of(r), ranges.Of()
	}
	return own, shared
}

func (f daxFile) Pread(b []byte, off int64) (int, error) {
	r := ranges.Range{Off: off, Len: int64(len(b))}
	if own, shared := f.listed(r); !own.Empty() || !shared.Empty() {
		return 0, unix.EIO
	}
	for page := ranges.Page(off); page.Off < r.End(); page = page.Shift(ranges.PageSize) {
		at, ok := f.File.Device().Place(page.Off)
		switch {
		case !ok || !f.medium.disk.Touch(rng(at.Sector*ranges.SectorSize, pg)):
		case page.Off <= off:
			return 0, unix.EFAULT
		default:
			return f.File.Pread(b[:page.Off-off], off)
		}
	}
	if err := unix.Fadvise(f.Fd(), 0, 0, unix.FADV_DONTNEED); err != nil { // on DAX there is no cache to go stale
		return 0, err
	}
	return f.File.Pread(b, off)
}

func (f daxFile) Pwrite(b []byte, off int64, uid uint32) (int, error) {
	r := ranges.Range{Off: off, Len: int64(len(b))}
	own, shared := f.listed(r)
	if err := f.SetMtime(time.Now().UnixNano()); err != nil { // before anything is tried (xfs_file_write_checks)
		return 0, err
	}
	switch {
	case !shared.Empty():
		return 0, unix.EIO
	case own.Empty() && f.medium.noRoom.Load():
		return 0, unix.ENOSPC
	case own.Empty():
		return f.File.Pwrite(b, off, uid)
	case f.medium.disk.Refuses(), f.medium.refuses(r), r != r.Widen(ranges.PageSize):
		return 0, unix.EFAULT
	}
	n, err := f.File.Pwrite(b, off, uid)
	for page := ranges.Page(off); err == nil && page.Off < off+int64(n); page = page.Shift(ranges.PageSize) {
		if at, ok := f.File.Device().Place(page.Off); ok {
			f.medium.disk.Clear(rng(at.Sector*ranges.SectorSize, pg))
		}
	}
	return n, err
}

func (f daxFile) Sync(full bool) error {
	f.medium.synced.Add(1)
	if f.medium.syncFails.Load() {
		return unix.EIO
	}
	return f.File.Sync(full)
}

// Corroborate says no where it would on DAX.
func (f daxFile) Corroborate(r ranges.Range) media.Verdict {
	f.medium.corroborated.Add(1)
	if v := f.File.Corroborate(r); v != media.Unknown {
		return v
	}
	return media.Clear
}

// daxRig is a rig on such a disk.
type daxRig struct {
	*rig
	disk   *pmemtest.Disk
	medium *daxMedium
}

func newDaxRig(t *testing.T, kind string, size int, mkfs ...string) *daxRig {
	t.Helper()
	d := &daxRig{disk: pmemtest.New(t, kind, mkfs...)}
	d.rig = newRig(t, "", size)
	d.rig.backing = d.disk.At
	d.rig.wrap = func(media.Medium) media.Medium {
		v := d.disk.Volume()
		if kind == "xfs" {
			d.check(v.AllowZero())
		}
		d.medium = &daxMedium{Real: media.NewOnPmem(d.root, v), disk: d.disk}
		t.Cleanup(func() { d.check(d.medium.Real.Close()) })
		return d.medium
	}
	d.put("file", pattern(size))
	d.start()
	return d
}

func (d *daxRig) bad(r ranges.Range) {
	d.t.Helper()
	d.disk.Poison(d.fd, r)
	d.medium.Real.Open(d.fd).Corroborate(r) // now the medium knows, without waiting for its own look
}

func (d *daxRig) wantNothingListed() {
	d.t.Helper()
	if left := d.disk.Listed(); !left.Empty() {
		d.t.Errorf("still listed: %v", left)
	}
}
