package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount"
)

func (f *facts) judgeFilesystem() Finding {
	m := f.medium
	r := Finding{Check: "filesystem", Verdict: OK, Found: fmt.Sprintf("%s %s, mounted at %s", m.mount.fstype, m.name, m.mount.at)}
	switch {
	case m.mount.fstype == "fuse.mendfs":
		r.Verdict, r.Stops = No, true
		r.Found = "this is a mendfs mount (" + m.mount.at + ")"
		r.Next = "name its backing directory after 'mendfs umount'"
	case mount.MadeUp(m.mount.fstype):
		r.Verdict, r.Stops = No, true
		r.Found += ", where the kernel makes up the files"
		r.Next = "name a directory of a filesystem that stores files"
	case m.mount.fstype != "ext4" && m.mount.fstype != "xfs":
		r.Verdict = Limited
		r.Found += "; mendfs is made for ext4 and XFS"
		r.Next = "good for trying with --simulate"
	}
	if slices.Contains(m.mount.options, "ro") || slices.Contains(m.mount.super, "ro") {
		if r.Verdict == OK {
			r.Verdict, r.Next = Limited, "mount -o remount,rw "+m.mount.at+", or mount it with mendfs for reading"
		}
		r.Found += ", read-only: nothing can be repaired"
	}
	return r
}

// judgeQuotas goes by the mount options: they are what is enforced.
func (f *facts) judgeQuotas() Finding {
	var on []string
	for _, o := range f.medium.mount.super {
		switch name, _, _ := strings.Cut(o, "="); name {
		case "quota", "usrquota", "uquota", "grpquota", "gquota", "prjquota", "pquota", "usrjquota", "grpjquota":
			on = append(on, name)
		}
	}
	switch {
	case len(on) == 0:
		return Finding{Check: "quotas", Verdict: OK, Found: "none are enforced"}
	case f.host.admin:
		return Finding{Check: "quotas", Verdict: OK, Found: strings.Join(on, ", ") + ": they hold in the mount as on the backing"}
	}
	return Finding{Check: "quotas", Verdict: Limited, Found: strings.Join(on, ", ") + ": what others make in your mount counts as yours", Next: "mount as root, or without --allow-other"}
}

func (f *facts) judgeDevice() Finding {
	d := f.medium.device
	simulate := "good for trying with --simulate"
	switch {
	case d.hidden():
		return Finding{Check: "device", Verdict: Limited, Found: f.medium.mount.source + ": " + d.notPmem.Error(), Next: "until then poison costs whole pages, and is known when it is read"}
	case d.path == "":
		return Finding{Check: "device", Verdict: Limited, Found: "no block device (" + f.medium.mount.source + ")", Next: simulate}
	case !d.pmem():
		return Finding{Check: "device", Verdict: Limited, Found: d.path + ": " + d.notPmem.Error(), Next: simulate}
	}
	return Finding{Check: "device", Verdict: OK, Found: fmt.Sprintf("%s, on %s (bus %s)", d.path, strings.Join(d.disks, ", "), dash(d.bus.provider))}
}

func (f *facts) judgeDAX() Finding {
	m := f.medium
	found := fmt.Sprintf("a new file %s, a file that is there %s, mount option %s, queue/dax %s", f.scratch.dax, m.fileDAX, dash(m.daxOption()), m.device.dax)
	next := "mount it with -o dax=always, on a device whose queue/dax is 1"
	if f.medium.mount.fstype == "xfs" && m.device.pmem() {
		next += " (XFS mounts without DAX, and does not say so, where that is 0)"
	}
	if !m.device.pmem() {
		next = "good for trying with --simulate: it takes persistent memory"
	}
	switch {
	case f.scratch.dax != unknown && m.fileDAX != unknown && f.scratch.dax != m.fileDAX:
		return Finding{Check: "dax", Verdict: Limited, Found: "not for all files: " + found, Next: next}
	case f.isDAX() == yes:
		return Finding{Check: "dax", Verdict: OK, Found: "yes: " + found}
	case f.isDAX() == no:
		return Finding{Check: "dax", Verdict: Limited, Found: "no: " + found, Next: next}
	}
	return Finding{Check: "dax", Verdict: Unknown, Found: "not known: " + found, Next: "put a file into the directory and ask again, as its owner or root"}
}

// judgeDAXPerFile is about FS_XFLAG_DAX, which counts with dax=inode, and for
// files that are opened anew.
func (f *facts) judgeDAXPerFile() Finding {
	r := Finding{Check: "dax per file", Verdict: f.tryVerdict(f.scratch.flagDAX, Limited)}
	option := f.medium.daxOption()
	switch {
	case r.Verdict == Unknown:
		r.Found, r.Next = f.untriedBecause(f.scratch.flagDAX), f.askAgain()
	case !f.scratch.flagDAX.works():
		r.Found = "files can't be marked for DAX: " + f.scratch.flagDAX.reason()
		r.Next = "the mount option decides for all files"
	case option == "always" || option == "never":
		r.Found = "files can be marked for DAX, but the mount option dax=" + option + " decides for all"
	case f.medium.device.dax == no:
		r.Verdict, r.Next = Limited, "it takes persistent memory"
		r.Found = "files can be marked for DAX, but the device has none"
	default:
		r.Found = "files can be marked for DAX (xfs_io -c 'chattr +x'); it counts when they are opened anew"
	}
	return r
}

// judgeMapSync: through FUSE there is none. Whether that matters depends on
// whether programs have it now.
func (f *facts) judgeMapSync() Finding {
	s := f.scratch.mapSync
	switch {
	case s.works():
		return Finding{Check: "MAP_SYNC", Verdict: No, Found: "works on the backing, and never through a mendfs mount", Next: "programs that ask for it (PMDK) fall back to msync: see that they do, and that they are fast enough so"}
	case s.done:
		return Finding{Check: "MAP_SYNC", Verdict: OK, Found: "not on the backing (" + s.reason() + "), and not through a mendfs mount: nothing changes"}
	}
	return Finding{Check: "MAP_SYNC", Verdict: No, Found: "never available through a mendfs mount; on the backing " + f.untriedBecause(s), Next: "programs that ask for it (PMDK) fall back to msync"}
}

// askAgain is the next step where something could not be tried.
func (f *facts) askAgain() string {
	s := f.scratch
	switch err := s.open.err; {
	case s.open.works() && !s.fill.works():
		return "make room, or overwrite the files with bad blocks, and ask again"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "ask again as who may make files in the directory"
	case errors.Is(err, unix.EROFS):
		return "remount the filesystem read-write, and ask again"
	case !s.open.done:
		return "ask about the backing directory of the mount, before it is mounted"
	}
	return "nothing to do: this filesystem has no way to tell"
}

// tryVerdict is that of something tried on a scratch file.
func (f *facts) tryVerdict(t trial, otherwise Verdict) Verdict {
	if !f.scratch.open.works() {
		return Unknown
	}
	return t.verdict(otherwise)
}

// untriedBecause says why something was not tried on a scratch file.
func (f *facts) untriedBecause(t trial) string {
	switch s := f.scratch; {
	case !s.open.works():
		return "not tried: there can be no file for it (" + s.open.reason() + ")"
	case t.why == "" && !s.fill.works():
		return "not tried: " + s.fill.reason()
	}
	return "not tried: " + t.reason()
}
