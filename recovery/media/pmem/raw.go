package pmem

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// ErrNoRaw says, with the reason, that single sectors of a device can't be
// read, or not be cleared.
var ErrNoRaw = errors.New("no raw access to single sectors")

// openRaw opens the device, if it is still the one meant.
func (v *Volume) openRaw(access int) (Block, error) {
	if v.sector != ranges.SectorSize {
		return nil, fmt.Errorf("%w: the sectors of %s have %d bytes", ErrNoRaw, v.name, v.sector)
	}
	f, err := os.OpenFile(v.name, access|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoRaw, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != v.dev {
		_ = f.Close() // nothing was done with it
		return nil, fmt.Errorf("%w: %s is another device", ErrNoRaw, v.name)
	}
	if v.kernel.Block != nil {
		return v.kernel.Block(f), nil
	}
	return f, nil
}

// CanReadSectors fails with ErrNoRaw, and the reason, where ReadSectors would.
func (v *Volume) CanReadSectors() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.raw == nil {
		return v.why
	}
	return nil
}

// ReadSectors is one read of the device, past all caches; p and off are whole
// sectors. A request fails as a whole for one bad sector in it. The error is
// ErrNoRaw where the device can't be read so at all.
func (v *Volume) ReadSectors(p []byte, off int64) (int, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.raw == nil {
		return 0, v.why
	}
	if off%ranges.SectorSize != 0 || len(p)%ranges.SectorSize != 0 {
		return 0, fmt.Errorf("reading %d bytes at %d of %s: not whole sectors: %w", len(p), off, v.name, unix.EINVAL)
	}
	buf := aligned(len(p))
	n, err := v.raw.ReadAt(buf, off)
	return copy(p, buf[:n]), err
}

// AllowZero opens the device for ZeroSectors. The error is ErrNoRaw where that
// can't be. Like Open it must come before rights are given away.
func (v *Volume) AllowZero() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.writer != nil {
		return nil
	}
	if v.mapped {
		return fmt.Errorf("%w: the device mapper may move %s meanwhile", ErrNoRaw, v.name)
	}
	b, err := v.openRaw(os.O_RDWR)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w; kernels with CONFIG_BLK_DEV_WRITE_MOUNTED=n allow nobody to write a device that is mounted (bdev_allow_write_mounted on its command line)", err)
	}
	v.writer = b
	return err
}

// ZeroSectors writes zeros over r, whole sectors, past all caches and past the
// filesystem: the driver clears listed sectors and then writes (drivers/nvdimm/pmem.c,
// pmem_do_write, Linux 5.19 to 6.18). Whoever calls it must know that r is what it
// takes r for at this moment. The error is ErrNoRaw before AllowZero, and EIO if
// the device refuses to clear.
func (v *Volume) ZeroSectors(r ranges.Range) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.writer == nil {
		return fmt.Errorf("%w: %s is not open for writing", ErrNoRaw, v.name)
	}
	if r.Off%ranges.SectorSize != 0 || r.Len%ranges.SectorSize != 0 {
		return fmt.Errorf("zeroing %v of %s: not whole sectors: %w", r, v.name, unix.EINVAL)
	}
	zeros := aligned(ranges.PageSize)
	for at := r.Off; at < r.End(); {
		n := min(r.End(), ranges.Page(at).End()) - at
		if _, err := v.writer.WriteAt(zeros[:n], at); err != nil {
			return err
		}
		at += n
	}
	return v.writer.Sync() // the driver writes past the caches; the bus may keep it still (nvdimm_flush)
}

// aligned is memory of our own that O_DIRECT takes.
func aligned(n int) []byte {
	buf := make([]byte, n+ranges.PageSize)
	skip := -uintptr(unsafe.Pointer(&buf[0])) & (ranges.PageSize - 1)
	return buf[skip:][:n:n]
}
