package media

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// below is the pmem below a file.
type below struct {
	file   *realFile
	volume *pmem.Volume
}

var _ Device = below{}

// Device is nil for files of other filesystems than the one that the medium was
// opened for.
func (f *realFile) Device() Device {
	v := f.medium.volume
	if v == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil || st.Dev != v.Dev() {
		return nil
	}
	return below{f, v}
}

// AnyListed is what the last look at the list has shown.
func (m *Real) AnyListed() bool {
	known := m.known.Load()
	return known != nil && !known.Bad.Empty()
}

// LookListed goes by what is known if the list can't be read.
func (m *Real) LookListed() bool {
	if m.volume == nil {
		return false
	}
	_, _ = m.list()
	return m.AnyListed()
}

// MustClear is true on XFS.
func (m *Real) MustClear() bool { return m.mustClear }

func isXFS(fd int) bool {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return err == nil && uint32(st.Type) == unix.XFS_SUPER_MAGIC
}

// relook is how often the list is looked at without being told to. The kernel
// tells of what its drivers add; what others write to the list it does not.
const relook = time.Second

// watch keeps what is known true to the list, until ctx ends.
func (m *Real) watch(ctx context.Context) {
	changes := m.volume.Watch(ctx, relook)
	_, _ = m.list() // on error nothing is known
	go func() {     // ends with ctx
		defer close(m.watched)
		for range changes {
			_, _ = m.list()
		}
	}()
}

// list reads the list afresh. Nobody changes it.
func (m *Real) list() (*pmem.List, error) {
	m.looking.Lock()
	defer m.looking.Unlock()
	list, err := m.volume.Bad()
	if err == nil {
		m.known.Store(list)
	}
	return list, err
}

// Corroborate compares the kernel's list with where the file lies. That the list
// has nothing means something where the kernel asks it for every read: on DAX
// (fs/dax.c, dax_iomap_iter). Elsewhere a read can fail before anybody has listed
// anything, and where there is no list, the errno is the only word.
func (f *realFile) Corroborate(r ranges.Range) Verdict {
	d, on := f.Device().(below)
	if !on {
		return Unknown
	}
	list, err := f.medium.list()
	if err != nil {
		return Unknown
	}
	own, shared, err := d.in(list, r.Widen(ranges.PageSize))
	switch {
	case err != nil:
		return Unknown
	case !own.Empty() || !shared.Empty():
		return Listed
	case list.Complete && isDAX(f.fd):
		return Clear
	}
	return Unknown
}

// isDAX reports whether the file is read from the media with every read.
func isDAX(fd int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_DAX != 0
}

// Listed asks nothing of the file while nothing at all is listed.
func (d below) Listed(r ranges.Range) (own, shared *ranges.Set, err error) {
	list, err := d.file.medium.list()
	if err != nil {
		return nil, nil, err
	}
	r = r.Widen(ranges.PageSize)
	own, shared, err = d.in(list, r)
	if err == nil && !shared.Empty() && pmem.EndRemovals(d.file.fd) == nil {
		return d.in(list, r) // they were shared with a file that is gone, perhaps
	}
	return own, shared, err
}

func (d below) Known(r ranges.Range) (own, shared *ranges.Set, err error) {
	list := d.file.medium.known.Load()
	if list == nil {
		return d.Listed(r)
	}
	return d.in(list, r.Widen(ranges.PageSize))
}

// in is the pages of r that the list has something of.
func (d below) in(list *pmem.List, r ranges.Range) (own, shared *ranges.Set, err error) {
	own, shared = ranges.Of(), ranges.Of()
	if list.Bad.Empty() {
		return own, shared, nil
	}
	for e, err := range pmem.EachExtent(d.file.fd, r) {
		if err != nil {
			return nil, nil, err
		}
		if !e.Usable() {
			continue
		}
		pages := own
		if e.Shared() {
			pages = shared
		}
		for bad := range list.Bad.Within(e.On()) {
			pages.Add(bad.Shift(e.File.Off - e.Device).Widen(ranges.PageSize))
		}
	}
	return own, shared, nil
}

func (d below) Place(off int64) (Place, bool) {
	extents, err := pmem.Extents(d.file.fd, ranges.Range{Off: off, Len: 1})
	if err != nil || len(extents) != 1 || !extents[0].Usable() {
		return Place{}, false
	}
	disk, sector := d.volume.Sector(extents[0].Device)
	return Place{Device: "/dev/" + disk, Sector: sector}, disk != ""
}

// errMoved says that the filesystem has put the bytes elsewhere, or nowhere,
// while they were being read from the device.
var errMoved = errors.New("the file was cut or moved meanwhile")

// lie is where r lies, in one piece and as it is in the file.
func (d below) lie(r ranges.Range) (pmem.Extent, error) {
	extents, err := pmem.Extents(d.file.fd, r)
	switch {
	case err != nil:
		return pmem.Extent{}, err
	case len(extents) == 0:
		return pmem.Extent{}, errors.New("the file has no block there any more")
	case len(extents) > 1 || extents[0].File != r:
		return pmem.Extent{}, errors.New("the page lies in several pieces")
	case extents[0].Unwritten():
		return pmem.Extent{}, errors.New("the block was never written")
	case !extents[0].Usable():
		return pmem.Extent{}, fmt.Errorf("what is on the device is not as in the file (FIEMAP flags %#x)", extents[0].Flags)
	}
	return extents[0], nil
}

// Salvage reads the sectors of the device, and believes them if the file still
// lay there afterwards.
func (d below) Salvage(buf []byte, off int64) (missing []ranges.Range, granularity int64, why string) {
	all := ranges.Range{Off: off, Len: int64(len(buf))}
	lost, err := d.salvage(buf, all)
	if err == nil {
		return lost.Slice(), ranges.SectorSize, "sectors read from " + d.volume.Name()
	}
	missing, granularity = d.file.salvage(buf, off)
	return missing, granularity, err.Error()
}

func (d below) salvage(buf []byte, all ranges.Range) (lost *ranges.Set, err error) {
	st, err := d.file.Stat()
	if err != nil {
		return nil, err
	}
	wide := all.Widen(ranges.SectorSize)
	before, err := d.lie(wide)
	if err != nil {
		return nil, err
	}
	raw, bad, err := d.read(before)
	if err != nil {
		return nil, err
	}
	if after, err := d.lie(wide); err != nil || after != before {
		return nil, errMoved
	}
	copy(buf, raw[all.Off-wide.Off:])
	inFile := all.Intersect(ranges.Between(0, st.Size))
	clear(buf[inFile.Len:])
	return ranges.Of(within(bad, inFile)...), nil
}

func within(s *ranges.Set, r ranges.Range) (pieces []ranges.Range) {
	for piece := range s.Within(r) {
		pieces = append(pieces, piece)
	}
	return pieces
}

// read reads an extent sector by sector; bad is the bytes of the file that could
// not be read. If none could, and not all are listed, nothing was learnt: the
// kernel takes a whole page out of its map when a program has met poison there, until
// it is cleared (Linux 5.19, set_mce_nospec; kernel facts 4).
func (d below) read(e pmem.Extent) (data []byte, bad *ranges.Set, err error) {
	data, bad = make([]byte, e.File.Len), ranges.Of()
	var failure error
	for at := int64(0); at < e.File.Len; at += ranges.SectorSize {
		_, err := d.volume.ReadSectors(data[at:at+ranges.SectorSize], e.Device+at)
		if errors.Is(err, pmem.ErrNoRaw) || errors.Is(err, os.ErrClosed) {
			return nil, nil, err
		}
		if err != nil {
			failure = err
			bad.Add(ranges.Range{Off: e.File.Off + at, Len: ranges.SectorSize})
		}
	}
	if bad.Bytes() == e.File.Len && !d.isListed(e) {
		return nil, nil, fmt.Errorf("the device gives no sector of it, either: %w", failure)
	}
	return data, bad, nil
}

// isListed reports whether all of an extent is listed.
func (d below) isListed(e pmem.Extent) bool {
	bad, err := d.Bad()
	return err == nil && bad.Contains(e.On())
}

func (d below) Bad() (*ranges.Set, error) {
	list, err := d.file.medium.list()
	if err != nil {
		return nil, err
	}
	return &list.Bad, nil
}

// Zero looks at everything afresh after the others were told of it, which may take its
// time.
func (d below) Zero(page ranges.Range, first func(doomed *ranges.Set) error) error {
	told := ranges.Of()
	for {
		at, err := d.lie(page)
		if err != nil {
			return err
		}
		doomed, err := d.doomed(at)
		if err != nil {
			return err
		}
		if at.Shared() && !containsAll(told, doomed) {
			if err := first(doomed); err != nil {
				return err
			}
			told = doomed
			continue
		}
		if now, err := d.lie(page); err != nil || now != at {
			return errMoved
		}
		for r := range doomed.All() {
			if err := d.volume.ZeroSectors(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// doomed is what Zero will clear of an extent of one page; nothing if somebody has
// cleared it. A shared page is cleared whole only if all of it is listed: then its
// others lose nothing by it that they had.
func (d below) doomed(at pmem.Extent) (*ranges.Set, error) {
	bad, err := d.Bad()
	if err != nil {
		return nil, err
	}
	listed := ranges.Of(within(bad, at.On())...)
	switch {
	case listed.Empty(), listed.Contains(at.On()), d.anyReads(at, bad):
		return listed, nil
	case at.Shared():
		return nil, fmt.Errorf("%w: no sector of the page can be read, and other files have it, too", pmem.ErrNoRaw)
	}
	return ranges.Of(at.On()), nil
}

func containsAll(s, of *ranges.Set) bool {
	for r := range of.All() {
		if !s.Contains(r) {
			return false
		}
	}
	return true
}

// anyReads reports whether a sector of the extent that is not listed can be read.
// Less than a page may only be written where the kernel has the page in its map:
// it would fault itself (pmem_do_write; kernel facts 4).
func (d below) anyReads(e pmem.Extent, listed *ranges.Set) bool {
	buf := make([]byte, ranges.SectorSize)
	for gap := range listed.Gaps(e.On()) {
		for at := gap.Off; at < gap.End(); at += ranges.SectorSize {
			if _, err := d.volume.ReadSectors(buf, at); err == nil {
				return true
			}
		}
	}
	return false
}
