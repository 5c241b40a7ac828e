package doctor

import (
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func (f *facts) judgeKernel() Finding {
	r := Finding{Check: "kernel", Verdict: OK, Found: "Linux " + f.host.release}
	if !f.host.atLeast(5, 19) {
		r.Verdict = Limited
		r.Found += ": by its version, a write does not clear poison; punching a hole and writing does"
		r.Next = "Linux 5.19 or newer clears by an aligned write"
	}
	return r
}

func (f *facts) judgeFuse() Finding {
	err := f.host.fuse
	switch {
	case err == nil:
		return Finding{Check: "/dev/fuse", Verdict: OK, Found: "can be opened"}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return Finding{"/dev/fuse", No, "is not there", "modprobe fuse; in a container, pass the device in", true}
	}
	return Finding{"/dev/fuse", No, "can't be opened: " + cause(err), "run as root, or get read and write permission on /dev/fuse", true}
}

// judgeNotifications is about telling the kernel to drop cached pages after a
// repair, and asking it for good copies: FUSE 7.12 and 7.15.
func (f *facts) judgeNotifications() Finding {
	p := f.host.protocol
	r := Finding{Check: "notifications", Verdict: p.verdict(Unknown)}
	if !p.works() {
		r.Found, r.Next = "the kernel was not asked for its FUSE protocol: "+p.reason(), "ask again as root"
		return r
	}
	r.Found = fmt.Sprintf("FUSE %d.%d: the kernel drops cached pages, and gives them, when it is told to", p.major, p.minor)
	if p.major < 7 || p.major == 7 && p.minor < 15 {
		r.Verdict = Limited
		r.Found = fmt.Sprintf("FUSE %d.%d: the kernel can't be asked for pages that it has cached", p.major, p.minor)
		r.Next = "a newer kernel"
	}
	return r
}

func (f *facts) judgePassthrough() Finding {
	p := f.host.protocol
	r := Finding{Check: "passthrough", Verdict: OK}
	switch {
	case p.works() && p.offers(fuse.CAP_PASSTHROUGH):
		r.Found = "the kernel offers FUSE passthrough, for --protect rw and known"
	case p.works():
		r.Found = "the kernel offers no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH); only --protect rw and known need it"
	case !f.host.admin:
		r.Found = "for root only, as are --protect rw and known"
	default:
		r.Verdict, r.Found = Unknown, "the kernel was not asked for its FUSE protocol: "+p.reason()
		r.Next = "--protect full, the default, does not need it"
	}
	return r
}

func (f *facts) judgeMounting() Finding {
	h := f.host
	r := Finding{Check: "mounting", Verdict: Limited, Found: "by " + h.fusermount}
	switch {
	case h.admin:
		return Finding{Check: "mounting", Verdict: OK, Found: "CAP_SYS_ADMIN"}
	case h.fusermount == "":
		return Finding{"mounting", No, "neither CAP_SYS_ADMIN nor fusermount3", "run as root, or install fuse3", true}
	case !h.setuid:
		return Finding{"mounting", No, h.fusermount + " does not run as root", "run as root, or chmod u+s " + h.fusermount, true}
	case h.allowOther:
		r.Found += ", also with --allow-other"
		r.Next = "only root finds files again by their handles, and repairs what you may not read"
	default:
		r.Found += ", for yourself only"
		r.Next = "--allow-other also needs user_allow_other in /etc/fuse.conf"
	}
	return r
}

func (f *facts) judgeOverMount() Finding {
	if f.host.openTree == nil {
		return Finding{Check: "over-mount", Verdict: OK, Found: "open_tree works"}
	}
	return Finding{Check: "over-mount", Verdict: Limited, Found: "works, but open_tree does not: " + cause(f.host.openTree), Next: "the directory itself is held instead of a clone of its mount: what is mounted below it shows through; as root it would be hidden"}
}

func (f *facts) judgeHandles() Finding {
	switch {
	case f.host.handles != nil:
		return Finding{Check: "file handles", Verdict: Limited, Found: "the filesystem has none: " + cause(f.host.handles), Next: "files are found again by inode, birth time and path"}
	case f.host.byHandle != nil:
		return Finding{Check: "file handles", Verdict: Limited, Found: "open_by_handle_at: " + cause(f.host.byHandle), Next: "CAP_DAC_READ_SEARCH lets a repair find a renamed file after a crash"}
	}
	return Finding{Check: "file handles", Verdict: OK, Found: "files are found again after renames and crashes"}
}

// judgeLandlock: version 1 forbids renames between directories, and is not used.
func (f *facts) judgeLandlock() Finding {
	h := f.host
	switch {
	case h.noLandlock != nil:
		return Finding{Check: "landlock", Verdict: Limited, Found: "the daemon can't be confined to the files it serves: " + cause(h.noLandlock), Next: "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in lsm= on its command line"}
	case h.landlock < 2:
		return Finding{Check: "landlock", Verdict: Limited, Found: "version 1 forbids renames between directories, and is not used", Next: "Linux 5.19 or newer"}
	}
	return Finding{Check: "landlock", Verdict: OK, Found: fmt.Sprintf("version %d: the daemon is confined to the files it serves", h.landlock)}
}
