package mount

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

// What the helper of mount(8) needs beyond New.

// IsMountOpt reports whether word can be one of Options.MountOpts.
func IsMountOpt(word string) bool {
	_, err := parseMountOpts([]string{word})
	return err == nil
}

// Check makes those checks of New that need nothing to be made, and changes
// nothing. Errors are *Error.
func Check(o Options) error {
	c, err := o.parse()
	if err != nil {
		return err
	}
	if err := checkFUSE("/dev/fuse", c.AllowOther); err != nil {
		return err
	}
	t, err := findTarget(c)
	if err != nil {
		return err
	}
	t.close()
	return nil
}

const (
	anew       = "umount it, and mount it again"
	atimeFlags = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME | unix.MS_NODIRATIME
)

// Remount gives the running mount at path, of which s is the status, the
// options opts in place of those that it has: as far as the kernel keeps them.
// What the serving process goes by (read-only if that was so from the start,
// access times, allow_other, fsname) can't change; it is refused unless it
// equals what is in force. With fake it only says whether it could be done.
func Remount(path string, s control.Status, opts []string, fake bool) error {
	f, err := parseMountOpts(opts)
	if err != nil {
		return err
	}
	p, err := lookup(path)
	if err != nil {
		return notThere(err, "mountpoint", path)
	}
	defer p.close()
	if p.mount.Type != FSType || !p.isMountRoot() {
		return usage("see the mounts with mendfs status", "%s is not the mountpoint of a mendfs mount", p.path)
	}
	if err := p.unchanged(f, s); err != nil {
		return err
	}
	flags, err := p.remountFlags(f, s)
	if err != nil || fake {
		return err
	}
	err = unix.Mount("", fdPath(p.fd), "", unix.MS_REMOUNT|flags, "")
	switch {
	case errors.Is(err, unix.EPERM):
		return failed(err, "remount as root", "%s can't be remounted", p.path)
	case errors.Is(err, unix.EBUSY):
		return failed(err, "end the programs that write there (fuser -vm "+p.path+")", "%s can't become read-only", p.path)
	case err != nil:
		return failed(err, "see dmesg", "%s can't be remounted", p.path)
	}
	return nil
}

// unchanged refuses what only a new mount can have.
func (p *place) unchanged(f mountFlags, s control.Status) error {
	now := msFlags(p.mount.Options)
	switch {
	case s.ReadOnly && !f.readOnly:
		return failed(nil, anew, "rw can't be had by a remount: %s was mounted read-only, or the backing directory is", p.path)
	case f.allowOther && !s.AllowOther:
		return failed(nil, anew, "allow_other can't be had by a remount: %s was mounted without", p.path)
	case f.source != "" && f.source != p.mount.Source:
		return failed(nil, anew, "fsname=%s can't be had by a remount: %s was mounted as %s", f.source, p.path, p.mount.Source)
	case (f.set|f.clear)&atimeFlags != 0 && atimeAttr(now&^f.clear|f.set) != atimeAttr(now):
		return failed(nil, anew, "other access times can't be had by a remount: mendfs keeps them at %s as it was mounted", p.path)
	}
	return nil
}

// remountFlags is the MS_* bits that the mount is to have. As with mount(8),
// what is not named goes; what it has from the backing's own mount stays.
func (p *place) remountFlags(f mountFlags, s control.Status) (uintptr, error) {
	own, err := p.backingFlags(s)
	if err != nil {
		return 0, err
	}
	now := msFlags(p.mount.Options)
	flags := now & own &^ atimeFlags
	flags = flags&^f.clear | f.set&^atimeFlags | now&atimeFlags // none is strictatime; the kernel leaves it
	if f.readOnly {
		flags |= unix.MS_RDONLY
	}
	return flags, nil
}

// backingFlags is the MS_* bits of the mount that the backing directory is on.
func (p *place) backingFlags(s control.Status) (uintptr, error) {
	if s.OverMounted {
		all, err := mounts()
		if err != nil {
			return 0, failed(err, "see whether /proc is mounted", "the mount table can't be read")
		}
		for _, e := range all {
			if e.ID == p.mount.Parent {
				return msFlags(e.Options), nil
			}
		}
		return 0, failed(nil, anew, "what %s covers can't be seen from here", p.path)
	}
	backing, err := lookup(s.Backing)
	if err != nil {
		return 0, notThere(err, "backing directory", s.Backing)
	}
	backing.close()
	return msFlags(backing.mount.Options), nil
}
