package doctor

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// blocks is what was found out about the blocks of a scratch file.
type blocks struct {
	place  trial // FIEMAP says where its first page lies
	sector trial // 512 bytes read from the device there are the file's
	owner  trial // GETFSMAP says whose they are
}

var (
	errNoPlace = errors.New("no place on the device that has the file's bytes")
	errNoOwner = errors.New("it does not say whose")
)

// ask looks for the first page of the file at fd on the device.
func (b *blocks) ask(fd int, content []byte, d device) {
	at, err := placeOf(fd, 0)
	if b.place = tried(err); err != nil {
		b.sector, b.owner = untried("it is not known where files lie: "+cause(err)), untried("it is not known where files lie: "+cause(err))
		return
	}
	b.owner = tried(askOwner(fd, at))
	switch {
	case !d.pmem():
		b.sector = untried("no pmem device")
	case d.rawRead != nil:
		b.sector = tried(d.rawRead)
	default:
		b.sector = tried(trySector(d.volume, at, content))
	}
}

// placeOf is where the page of the file at off lies.
func placeOf(fd int, off int64) (int64, error) {
	extents, err := pmem.Extents(fd, ranges.Page(off))
	if err != nil {
		return 0, err
	}
	if len(extents) != 1 || !extents[0].Usable() || extents[0].File.Len != ranges.PageSize {
		return 0, errNoPlace
	}
	return extents[0].Device, nil
}

// trySector reads the second sector of the page at off of the device.
func trySector(v *pmem.Volume, off int64, content []byte) error {
	sector := make([]byte, ranges.SectorSize)
	if _, err := v.ReadSectors(sector, off+ranges.SectorSize); err != nil {
		return err
	}
	if !bytes.Equal(sector, content[ranges.SectorSize:2*ranges.SectorSize]) {
		return errWrongBytes
	}
	return nil
}

// askOwner fails unless the filesystem says that the page at off of the device
// is the file's.
func askOwner(fd int, off int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	owners, err := pmem.Owners(fd, ranges.Page(off))
	if err != nil {
		return err
	}
	for _, o := range owners {
		if o.Kind == pmem.File && o.Ino == st.Ino {
			return nil
		}
	}
	return errNoOwner
}
