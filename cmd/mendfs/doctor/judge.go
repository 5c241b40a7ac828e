package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// judge turns facts into findings, in the order in which people want to know.
func (f facts) judge() []Finding {
	return []Finding{
		f.judgeKernel(),
		f.judgePassthrough(),
		f.judgeFilesystem(),
		f.judgeDevice(),
		f.judgeDAX(),
		f.judgeBadblocks(),
		f.judgeClearing(),
		f.judgeFuse(),
		f.judgeMounting(),
		f.judgeOverMount(),
		f.judgeHandles(),
		f.judgeRaw(),
		f.judgeMapSync(),
		f.judgeOtherPaths(),
		f.judgeUsers(),
		f.judgeState(),
	}
}

func (f facts) judgeKernel() Finding {
	r := Finding{Check: "kernel", Verdict: OK, Found: "Linux " + f.host.release}
	if !f.host.atLeast(5, 19) {
		r.Verdict = Limited
		r.Found += ": a write does not clear poison, punching a hole and writing does"
		r.Next = "Linux 5.19 or newer clears by an aligned write"
	}
	return r
}

func (f facts) judgePassthrough() Finding {
	r := Finding{Check: "passthrough", Verdict: OK, Found: "the kernel has FUSE passthrough, for --protect rw and known"}
	switch {
	case !f.host.atLeast(6, 9):
		r.Found = "the kernel has no FUSE passthrough (Linux 6.9); only --protect rw and known need it"
	case !f.host.admin:
		r.Found = "the kernel has FUSE passthrough; --protect rw and known are for root"
	}
	return r
}

func (f facts) judgeFilesystem() Finding {
	m := f.medium
	r := Finding{Check: "filesystem", Verdict: OK, Found: fmt.Sprintf("%s %s, mounted at %s", m.mount.fstype, m.name, m.mount.at)}
	switch {
	case m.mount.fstype == "fuse.mendfs":
		r.Verdict, r.Stops = No, true
		r.Found = "this is a mendfs mount (" + m.mount.at + ")"
		r.Next = "name its backing directory after 'mendfs umount'"
	case m.mount.fstype != "ext4" && m.mount.fstype != "xfs":
		r.Verdict = Limited
		r.Found += "; mendfs is made for ext4 and XFS"
		r.Next = "good for trying with --simulate"
	}
	if slices.Contains(m.mount.options, "ro") || slices.Contains(m.mount.super, "ro") {
		if r.Verdict == OK {
			r.Verdict = Limited
		}
		r.Found += ", read-only: nothing can be repaired"
	}
	return r
}

func (f facts) judgeDevice() Finding {
	m := f.medium
	switch {
	case m.device == "":
		return Finding{Check: "device", Verdict: Limited, Found: "no block device (" + m.mount.source + ")", Next: "good for trying with --simulate"}
	case !m.pmem:
		return Finding{Check: "device", Verdict: Limited, Found: m.device + " is not persistent memory", Next: "good for trying with --simulate"}
	}
	return Finding{Check: "device", Verdict: OK, Found: m.device}
}

func (f facts) judgeDAX() Finding {
	m := f.medium
	found := fmt.Sprintf("file attribute %s, mount option %s, queue/dax %s", m.fileDAX, dash(m.daxOption()), m.queueDAX)
	switch m.isDAX() {
	case yes:
		return Finding{Check: "dax", Verdict: OK, Found: "yes: " + found}
	case no:
		return Finding{Check: "dax", Verdict: Limited, Found: "no: " + found, Next: "mount it with -o dax=always, on a device whose queue/dax is 1"}
	}
	return Finding{Check: "dax", Verdict: Limited, Found: "not known: " + found, Next: "put a file into the directory and ask again, as its owner or root"}
}

func (f facts) judgeBadblocks() Finding {
	m := f.medium
	switch {
	case !m.pmem:
		return Finding{Check: "badblocks", Verdict: Limited, Found: "this device keeps no list of media errors", Next: "poison is told from an outage by control reads"}
	case m.badblocks != nil:
		return Finding{Check: "badblocks", Verdict: Limited, Found: "the list can't be read: " + cause(m.badblocks), Next: "poison is told from an outage by control reads"}
	}
	return Finding{Check: "badblocks", Verdict: OK, Found: fmt.Sprintf("readable, %d entries; this version does not use it yet", m.listed)}
}

// judgeClearing says how a poisoned page becomes usable again.
func (f facts) judgeClearing() Finding {
	r := Finding{Check: "clearing", Verdict: Limited}
	switch {
	case !f.medium.pmem:
		r.Found = "what a write clears is up to the device"
		r.Next = "try 'mendfs demo', or --simulate, to see it on simulated memory"
	case f.medium.isDAX() == no:
		r.Found = "a write clears through the page cache and the block layer, when it is written back"
		r.Next = "mount the filesystem with -o dax=always"
	case f.host.atLeast(5, 19):
		r.Verdict = OK
		r.Found = "a write of an aligned 4096-byte page, if the device's firmware can clear"
	default:
		r.Found = "punch a hole, then write the page"
		r.Next = "Linux 5.19 or newer clears by an aligned write"
	}
	if f.medium.mount.fstype == "xfs" {
		r.Found += "; not pages that files share (reflink)"
	}
	return r
}

func (f facts) judgeFuse() Finding {
	err := f.host.fuse
	switch {
	case err == nil:
		return Finding{Check: "/dev/fuse", Verdict: OK, Found: "can be opened"}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return Finding{"/dev/fuse", No, "is not there", "modprobe fuse; in a container, pass the device in", true}
	}
	return Finding{"/dev/fuse", No, "can't be opened: " + cause(err), "run as root, or get read and write permission on /dev/fuse", true}
}

func (f facts) judgeMounting() Finding {
	switch {
	case f.host.admin:
		return Finding{Check: "mounting", Verdict: OK, Found: "CAP_SYS_ADMIN"}
	case f.host.fusermount != "":
		return Finding{Check: "mounting", Verdict: Limited, Found: "by " + f.host.fusermount, Next: "--allow-other also needs user_allow_other in /etc/fuse.conf"}
	}
	return Finding{"mounting", No, "neither CAP_SYS_ADMIN nor fusermount3", "run as root, or install fuse3", true}
}

func (f facts) judgeOverMount() Finding {
	if f.host.openTree == nil {
		return Finding{Check: "over-mount", Verdict: OK, Found: "open_tree works"}
	}
	return Finding{Check: "over-mount", Verdict: Limited, Found: "works, but open_tree does not: " + cause(f.host.openTree), Next: "the directory itself is held instead of a clone of its mount: what is mounted below it shows through; as root it would be hidden"}
}

func (f facts) judgeHandles() Finding {
	switch {
	case f.host.handles != nil:
		return Finding{Check: "file handles", Verdict: Limited, Found: "the filesystem has none: " + cause(f.host.handles), Next: "files are found again by inode, birth time and path"}
	case f.host.byHandle != nil:
		return Finding{Check: "file handles", Verdict: Limited, Found: "open_by_handle_at: " + cause(f.host.byHandle), Next: "CAP_DAC_READ_SEARCH lets a repair find a renamed file after a crash"}
	}
	return Finding{Check: "file handles", Verdict: OK, Found: "files are found again after renames and crashes"}
}

func (f facts) judgeRaw() Finding {
	m := f.medium
	switch {
	case !m.pmem:
		return Finding{Check: "raw device", Verdict: Limited, Found: "no pmem device to read single sectors from"}
	case m.raw != nil:
		return Finding{Check: "raw device", Verdict: Limited, Found: m.device + ": " + cause(m.raw), Next: "root could read the good sectors of a bad page"}
	}
	return Finding{Check: "raw device", Verdict: OK, Found: m.device + " may be read and written; this version does not use it yet"}
}

func (f facts) judgeMapSync() Finding {
	return Finding{Check: "MAP_SYNC", Verdict: No, Found: "never available through a mendfs mount",
		Next: "programs that ask for it (PMDK) fall back to msync"}
}

func (f facts) judgeOtherPaths() Finding {
	if len(f.medium.others) == 0 {
		return Finding{Check: "other paths", Verdict: OK, Found: "no other mount shows these files; mount without MOUNTPOINT to cover their own path too"}
	}
	var at []string
	for _, m := range f.medium.others {
		at = append(at, m.at)
	}
	return Finding{Check: "other paths", Verdict: Limited, Found: "also mounted at " + shorten(at), Next: "use of these files by another path is not protected"}
}

func (f facts) judgeUsers() Finding {
	u := f.users
	switch {
	case len(u.found) > 0:
		var names []string
		for _, p := range u.found {
			names = append(names, p.String())
		}
		return Finding{Check: "direct users", Verdict: Limited, Found: shorten(names), Next: "stop them before mounting: what they have open stays unprotected"}
	case !u.all:
		return Finding{Check: "direct users", Verdict: Limited, Found: "none among your processes; others can't be looked at", Next: "ask again as root"}
	}
	return Finding{Check: "direct users", Verdict: OK, Found: "none"}
}

func (f facts) judgeState() Finding {
	s := f.state
	switch {
	case s.Err != nil:
		return Finding{"state", No, s.Err.Error(), "settle this before mounting", true}
	case s.Running != "":
		return Finding{"state", No, "already mounted at " + s.Running, "mendfs status " + s.Running, true}
	case s.Dir == "":
		return Finding{Check: "state", Verdict: OK, Found: "none yet: loss before the first mount is not known"}
	case s.OpenIntents > 0:
		return Finding{Check: "state", Verdict: Limited, Found: fmt.Sprintf("%d intents open: do not use the backing directly before mounting", s.OpenIntents),
			Next: "mount it; see mendfs lost --pending --state " + s.Dir}
	}
	return Finding{Check: "state", Verdict: OK, Found: s.Dir + ", no intents open"}
}

func (a answer) String() string {
	switch a {
	case yes:
		return "yes"
	case no:
		return "no"
	}
	return "unknown"
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// cause is the errno's own text, without the names of system calls before it.
func cause(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// shorten is the first three of names, and how many more there are.
func shorten(names []string) string {
	if len(names) <= 3 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
}
