package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// pmemDevice is the name of the persistent memory device that a filesystem with
// the device number dev ("major:minor") lies on; "" if it lies on another kind.
func pmemDevice(dev string) string {
	link, err := os.Readlink("/sys/dev/block/" + dev)
	if err != nil {
		return "" // no block device at all: tmpfs, NFS
	}
	if name := filepath.Base(link); strings.HasPrefix(name, "pmem") {
		return name
	}
	return ""
}

// realMedium is the medium of the backing's files. On persistent memory the device
// is opened now: a confined process could not do that later.
func (m *Mount) realMedium() (media.Medium, error) {
	var st unix.Stat_t
	if err := unix.Fstat(m.root, &st); err != nil {
		return nil, failed(err, "see dmesg", "the backing directory %s can't be examined", m.backing)
	}
	volume, err := pmem.Open(st.Dev)
	if err != nil {
		if !errors.Is(err, pmem.ErrNotPmem) {
			m.config.warn("the device of %s can't be asked for single sectors: poison costs whole pages (%v)", m.backing, err)
		}
		real := media.New(m.root)
		m.onClose(real.Close)
		return real, nil
	}
	m.onClose(volume.Close)
	m.list = &kernelList{root: m.root, volume: volume}
	if err := volume.CanReadSectors(); err != nil {
		m.config.warn("poison of %s costs whole pages: %v", m.backing, err)
	}
	if err := m.allowZero(volume); err != nil {
		m.config.warn("poison that files of %s share (reflink) can't be cleared: %v", m.backing, err)
	}
	real := media.NewOnPmem(m.root, volume)
	m.onClose(real.Close)
	return real, nil
}

// allowZero has the device open for writing where that is the only cure that some
// pages may have: on XFS, if its files may share blocks (reflink).
func (m *Mount) allowZero(volume *pmem.Volume) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(m.root, &fs); err != nil || uint32(fs.Type) != unix.XFS_SUPER_MAGIC || m.config.ReadOnly {
		return nil
	}
	dir, err := unix.Openat(m.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	shares, err := pmem.SharesBlocks(dir)
	if err != nil || !shares {
		return err
	}
	return volume.AllowZero()
}
