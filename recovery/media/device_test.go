package media

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/media/pmem/pmemtest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const sector = ranges.SectorSize

// onPmem is a file of 8 pages on a disk that lists what a test wants.
type onPmem struct {
	t    *testing.T
	disk *pmemtest.Disk
	file File
	fd   int
	data []byte
}

func newOnPmem(t *testing.T, kind string, mkfs ...string) *onPmem {
	t.Helper()
	d := pmemtest.New(t, kind, mkfs...)
	p := &onPmem{t: t, disk: d, data: make([]byte, 8*page)}
	for i := range p.data {
		p.data[i] = byte(1 + (i/sector*31+i)%251)
	}
	f, err := os.Create(filepath.Join(d.At, "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(p.data); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	p.fd = int(f.Fd())
	p.open()
	return p
}

// open opens the medium.
func (p *onPmem) open() {
	p.t.Helper()
	root, err := unix.Open(p.disk.At, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = unix.Close(root) })
	m := NewOnPmem(root, p.disk.Volume())
	p.t.Cleanup(func() { _ = m.Close() })
	p.file = m.Open(p.fd)
}

func at(off, n int64) ranges.Range { return ranges.Range{Off: off, Len: n} }

// salvage salvages a page.
func (p *onPmem) salvage(off int64) (got []byte, missing []ranges.Range, granularity int64, why string) {
	got = make([]byte, page)
	missing, granularity, why = p.file.Device().Salvage(got, off)
	return got, missing, granularity, why
}

func TestSalvageBySector(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			p := newOnPmem(t, kind)
			bad := []ranges.Range{at(2*page+sector, sector), at(2*page+5*sector, 2*sector)}
			for _, r := range bad {
				p.disk.Poison(p.fd, r)
			}
			got, missing, granularity, why := p.salvage(2 * page)
			if granularity != sector || ranges.Of(missing...).String() != ranges.Of(bad...).String() || !strings.Contains(why, "sectors read from") {
				t.Fatalf("missing %v at %d: %s", missing, granularity, why)
			}
			want := p.data[2*page : 3*page]
			for gap := range ranges.Of(missing...).Gaps(at(2*page, page)) {
				if !bytes.Equal(got[gap.Off-2*page:gap.End()-2*page], want[gap.Off-2*page:gap.End()-2*page]) {
					t.Errorf("%v is not what the file holds", gap)
				}
			}
		})
	}
}

func TestSalvagePastTheEnd(t *testing.T) {
	p := newOnPmem(t, "ext4")
	if err := unix.Ftruncate(p.fd, 7*page+100); err != nil {
		t.Fatal(err)
	}
	p.disk.Poison(p.fd, at(7*page+3*sector, sector))
	got, missing, granularity, why := p.salvage(7 * page)
	if len(missing) != 0 || granularity != sector || !bytes.Equal(got[:100], p.data[7*page:][:100]) || !bytes.Equal(got[100:], make([]byte, page-100)) {
		t.Errorf("missing %v at %d: %s", missing, granularity, why)
	}
}

// Where sectors can't be had, the page is what is lost, and it is said why.
func TestSalvageFallsBackToThePage(t *testing.T) {
	for _, c := range []struct {
		name, why string
		arrange   func(p *onPmem)
	}{
		{"large sectors", "4096 bytes", func(p *onPmem) { p.disk.SetLogicalBlock(4096); p.open() }},
		{"no block any more", "no block there", func(p *onPmem) {
			if err := unix.Fallocate(p.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 2*page, page); err != nil {
				p.t.Fatal(err)
			}
		}},
		{"never written", "never written", func(p *onPmem) {
			if err := unix.Fallocate(p.fd, unix.FALLOC_FL_ZERO_RANGE, 2*page, page); err != nil {
				p.t.Fatal(err)
			}
		}},
		{"no sector of it", "no sector of it", func(p *onPmem) {
			p.disk.Poison(p.fd, at(2*page, sector))
			place, _ := p.file.Device().Place(2 * page)
			p.disk.KillPage(place.Sector*sector, true)
		}},
		{"cut meanwhile", "meanwhile", func(p *onPmem) {
			p.disk.OnRead(func() {
				if err := unix.Ftruncate(p.fd, page); err != nil {
					p.t.Error(err)
				}
			})
		}},
		{"moved meanwhile", "meanwhile", func(p *onPmem) {
			p.disk.OnRead(func() { // to another block
				err := errors.Join(
					unix.Fallocate(p.fd, unix.FALLOC_FL_COLLAPSE_RANGE, page, page),
					unix.Fsync(p.fd),
				)
				if err != nil {
					p.t.Error(err)
				}
				p.disk.OnRead(nil)
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newOnPmem(t, "ext4")
			c.arrange(p)
			_, missing, granularity, why := p.salvage(2 * page)
			if granularity != page || len(missing) != 1 || missing[0] != at(2*page, page) || !strings.Contains(why, c.why) {
				t.Errorf("missing %v at %d: %q", missing, granularity, why)
			}
		})
	}
}

func TestCorroborateByTheList(t *testing.T) {
	p := newOnPmem(t, "ext4")
	p.disk.Poison(p.fd, at(3*page+sector, sector))
	for _, c := range []struct {
		r    ranges.Range
		want Verdict
	}{
		{at(3*page, page), Listed},
		{at(3*page, 1), Listed}, // its page is bad
		{at(0, 8*page), Listed},
		{at(2*page, page), Unknown}, // not on DAX: a read may fail before it is listed
		{at(4*page, page), Unknown},
	} {
		if got := p.file.Corroborate(c.r); got != c.want {
			t.Errorf("%v: %v, want %v", c.r, got, c.want)
		}
	}
	p.disk.SetList("nonsense\n")
	if got := p.file.Corroborate(at(3*page, page)); got != Unknown {
		t.Errorf("with a list that can't be read: %v", got)
	}
}

func TestListedPages(t *testing.T) {
	p := newOnPmem(t, "xfs", "-m", "reflink=1")
	copied, err := os.Create(filepath.Join(p.disk.At, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := unix.IoctlFileCloneRange(int(copied.Fd()), &unix.FileCloneRange{Src_fd: int64(p.fd), Src_offset: 4 * page, Src_length: page}); err != nil {
		t.Fatal(err)
	}
	for _, r := range []ranges.Range{at(page+sector, sector), at(4*page, sector), at(6*page+7*sector, sector)} {
		p.disk.Poison(p.fd, r)
	}
	own, shared, err := p.file.Device().Listed(at(0, 1<<40))
	if err != nil || own.String() != "{[4096 +4096) [24576 +4096)}" || shared.String() != "{[16384 +4096)}" {
		t.Errorf("own %v, shared %v, %v", own, shared, err)
	}
	place, ok := p.file.Device().Place(6*page + 7*sector)
	if !ok || place.Device != "/dev/pmem0" || !p.disk.Listed().Contains(at(place.Sector*sector, sector)) {
		t.Errorf("place %+v", place)
	}
	if !p.file.(*realFile).medium.MustClear() {
		t.Error("XFS may have poison in free space")
	}
}

// TestKnownPages: what is known is what the last look has shown.
func TestKnownPages(t *testing.T) {
	p := newOnPmem(t, "ext4")
	medium := p.file.(*realFile).medium
	if err := medium.Close(); err != nil { // nobody looks but the test
		t.Fatal(err)
	}
	p.disk.Poison(p.fd, at(page+sector, sector))
	for _, want := range []string{"{}", "{[4096 +4096)}"} {
		own, _, err := p.file.Device().Known(at(0, 1<<40))
		if err != nil || own.String() != want || medium.AnyListed() != !own.Empty() {
			t.Errorf("known %v, %v; want %v", own, err, want)
		}
		if !medium.LookListed() {
			t.Error("nothing seen")
		}
	}
	if medium.MustClear() {
		t.Error("ext4 clears what it allocates")
	}
}

// TestZero: of a page nothing but what is listed is cleared, if there is anything
// else; what others share is never cleared unlisted.
func TestZero(t *testing.T) {
	for _, c := range []struct {
		name    string
		bad     []ranges.Range // of page 2
		clone   bool
		dead    bool // no sector of the page reads
		written string
		noRaw   bool
	}{
		{"one sector", []ranges.Range{at(sector, sector)}, false, false, "{[512 +512)}", false},
		{"two sectors", []ranges.Range{at(sector, sector), at(4*sector, sector)}, false, false, "{[512 +512) [2048 +512)}", false},
		{"all sectors", []ranges.Range{at(0, page)}, false, false, "{[0 +4096)}", false},
		{"one sector, the page taken out of the map", []ranges.Range{at(sector, sector)}, false, true, "{[0 +4096)}", false},
		{"nothing", nil, false, false, "{}", false},
		{"shared, one sector", []ranges.Range{at(sector, sector)}, true, false, "{[512 +512)}", false},
		{"shared, all sectors", []ranges.Range{at(0, page)}, true, false, "{[0 +4096)}", false},
		{"shared, one sector, the page taken out of the map", []ranges.Range{at(sector, sector)}, true, true, "{}", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newOnPmem(t, "xfs", "-m", "reflink=1,rmapbt=1")
			if err := p.file.(*realFile).medium.volume.AllowZero(); err != nil {
				t.Fatal(err)
			}
			if c.clone {
				copied, err := os.Create(filepath.Join(p.disk.At, "copy"))
				if err != nil {
					t.Fatal(err)
				}
				defer copied.Close()
				if err := unix.IoctlFileClone(int(copied.Fd()), p.fd); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range c.bad {
				p.disk.Poison(p.fd, r.Shift(2*page))
			}
			extents, err := pmem.Extents(p.fd, at(2*page, page))
			if err != nil {
				t.Fatal(err)
			}
			on := extents[0].Device
			p.disk.KillPage(on, c.dead)
			told := ranges.Of()
			err = p.file.Device().Zero(at(2*page, page), func(doomed *ranges.Set) error {
				for r := range doomed.All() {
					told.Add(r.Shift(-on))
				}
				if w := p.disk.Written(); len(w) > 0 {
					t.Errorf("wrote %v before it was told", w)
				}
				return nil
			})
			if errors.Is(err, pmem.ErrNoRaw) != c.noRaw || !c.noRaw && err != nil {
				t.Fatal(err)
			}
			written := ranges.Of()
			for _, w := range p.disk.Written() {
				written.Add(w.Shift(-on))
			}
			if written.String() != c.written {
				t.Errorf("wrote %v, want %s", written, c.written)
			}
			if c.clone && told.String() != c.written {
				t.Errorf("told %v before, want %s", told, c.written)
			}
			if !c.clone && !told.Empty() {
				t.Errorf("told %v of a file of its own", told)
			}
		})
	}
}

// Where all sectors are listed, sectors are what is lost.
func TestSalvageOfAPageThatIsAllBad(t *testing.T) {
	p := newOnPmem(t, "ext4")
	p.disk.Poison(p.fd, at(2*page, page))
	_, missing, granularity, why := p.salvage(2 * page)
	if granularity != sector || len(missing) != 1 || missing[0] != at(2*page, page) {
		t.Errorf("missing %v at %d: %q", missing, granularity, why)
	}
}

// Sectors that are listed while the sharers are told are told of, too, before any is
// written; and if the sharers can't be told, none is.
func TestZeroTellsTheSharersFirst(t *testing.T) {
	p := newOnPmem(t, "xfs", "-m", "reflink=1")
	if err := p.file.(*realFile).medium.volume.AllowZero(); err != nil {
		t.Fatal(err)
	}
	copied, err := os.Create(filepath.Join(p.disk.At, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := unix.IoctlFileClone(int(copied.Fd()), p.fd); err != nil {
		t.Fatal(err)
	}
	p.disk.Poison(p.fd, at(2*page+sector, sector))
	refusal := errors.New("no room for a record")
	err = p.file.Device().Zero(at(2*page, page), func(*ranges.Set) error { return refusal })
	if !errors.Is(err, refusal) || len(p.disk.Written()) > 0 {
		t.Fatalf("%v, wrote %v", err, p.disk.Written())
	}
	var told []int64
	err = p.file.Device().Zero(at(2*page, page), func(doomed *ranges.Set) error {
		told = append(told, doomed.Bytes())
		if len(p.disk.Written()) > 0 {
			t.Errorf("wrote %v before", p.disk.Written())
		}
		p.disk.Poison(p.fd, at(2*page+3*sector, sector))
		return nil
	})
	if err != nil || !slices.Equal(told, []int64{sector, 2 * sector}) || !p.disk.Listed().Empty() {
		t.Errorf("%v; told of %v bytes, left %v", err, told, p.disk.Listed())
	}
}

// A filesystem that moves the page at the last moment has nothing written to.
func TestZeroOfAPageThatMoves(t *testing.T) {
	p := newOnPmem(t, "ext4")
	if err := p.file.(*realFile).medium.volume.AllowZero(); err != nil {
		t.Fatal(err)
	}
	p.disk.Poison(p.fd, at(2*page+sector, sector))
	p.disk.OnRead(func() {
		if err := unix.Ftruncate(p.fd, page); err != nil {
			t.Error(err)
		}
	})
	unshared := func(*ranges.Set) error { return errors.New("nobody shares it") }
	if err := p.file.Device().Zero(at(2*page, page), unshared); !errors.Is(err, errMoved) || len(p.disk.Written()) > 0 {
		t.Errorf("%v, wrote %v", err, p.disk.Written())
	}
}

// Files of other filesystems than the medium's have no device.
func TestNoDeviceElsewhere(t *testing.T) {
	p := newOnPmem(t, "ext4")
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d := p.file.(*realFile).medium.Open(int(f.Fd())).Device(); d != nil {
		t.Errorf("%v", d)
	}
	if d := New(-1).Open(int(f.Fd())).Device(); d != nil {
		t.Errorf("without a volume: %v", d)
	}
}
