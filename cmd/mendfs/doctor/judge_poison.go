package doctor

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mendfs/mendfs/recovery/media/pmem"
)

func (f *facts) judgeBadblocks() Finding {
	d := f.medium.device
	r := Finding{Check: "badblocks", Verdict: Limited, Next: "poison is told from an outage by control reads"}
	switch {
	case d.hidden():
		r.Found = "whether the device has a list can't be seen"
		return r
	case !d.pmem():
		r.Found = "this device keeps no list of media errors"
		return r
	case d.badblocks != nil:
		r.Found = "the list can't be read: " + cause(d.badblocks)
		return r
	case d.list == nil:
		r.Verdict, r.Found = Unknown, "the list was not read"
		return r
	}
	r.Found = fmt.Sprintf("readable; bad ranges: %d (%d bytes)", d.list.Bad.Count(), d.list.Bad.Bytes())
	switch {
	case !d.list.Complete:
		r.Found += "; it is cut: the kernel shows a page of text at most"
		r.Next = "overwrite damaged pages, and ask again"
	case d.list.Bad.Empty():
		r.Verdict, r.Next = OK, ""
	default:
		r.Verdict, r.Next = OK, "mendfs scan names the files"
	}
	return r
}

// judgeListChanges: whether poll(2) on the list wakes for an addition can't be
// tried without poison. The bus tells (facts of the lab: lists that are written
// by hand, as on e820, do not notify; NFIT's do, by nfit_handle_mce and scrubs).
func (f *facts) judgeListChanges() Finding {
	d := f.medium.device
	r := Finding{Check: "list changes", Verdict: Unknown, Next: "the list is read again from time to time"}
	switch {
	case !d.pmem() || d.badblocks != nil:
		r.Verdict, r.Found, r.Next = Limited, "no list to watch", "poison is met when it is read"
	case d.bus.provider == "ACPI.NFIT":
		r.Verdict, r.Next = OK, ""
		r.Found = "the kernel announces them on this bus (by what is known of it: it can't be tried without poison)"
	case d.bus.provider == "e820":
		r.Verdict, r.Found = Limited, "on this bus (memmap=) nothing is listed by itself, and what is added by hand is not announced"
	default:
		r.Found = "it can't be tried without poison, and of the bus " + dash(d.bus.provider) + " nothing is known"
	}
	return r
}

// judgeOwners: from a place on the device to the file.
func (f *facts) judgeOwners() Finding {
	t := f.scratch.blocks.owner
	r := Finding{Check: "owners", Verdict: f.tryVerdict(t, Limited)}
	switch {
	case r.Verdict == Unknown:
		r.Found, r.Next = f.untriedBecause(t), f.askAgain()
	case t.works():
		r.Found = "the filesystem says which file has a bad block (GETFSMAP)"
	default:
		r.Found = "the filesystem does not say which file has a bad block: " + t.reason()
		r.Next = "all files are walked for it, which takes its time"
		if errors.Is(t.err, errNoOwner) && f.medium.mount.fstype == "xfs" {
			r.Next += "; mkfs.xfs -m rmapbt=1 has a map"
		}
	}
	return r
}

// judgeMachineCheck is about poison that is not listed yet.
func (f *facts) judgeMachineCheck() Finding {
	c := f.host.copySafety
	r := Finding{Check: "machine check", Found: "reading poison that nobody has met yet is an error: " + c.Why}
	if c.Safe {
		r.Verdict = OK
		return r
	}
	r.Verdict, r.Found = No, "reading poison that nobody has met yet stops the machine: "+c.Why
	r.Next = "do not read all with 'mendfs scan --read'; another kernel or machine"
	switch {
	case !c.Known:
		r.Verdict, r.Found = Unknown, "whether reading poison that nobody has met yet stops the machine: "+c.Why
	case !f.medium.device.pmem():
		r.Verdict, r.Found, r.Next = Limited, "it would matter on persistent memory: "+c.Why, "nothing to do for this device"
	}
	return r
}

// judgeSalvage says how much of a bad page is lost.
func (f *facts) judgeSalvage() Finding {
	t, d := f.scratch.blocks.sector, f.medium.device
	r := Finding{Check: "salvage", Verdict: Limited}
	switch {
	case d.hidden():
		r.Found, r.Next = "by the page of 4096 bytes: the device can't be seen", "see 'device'"
	case !d.pmem():
		r.Found, r.Next = "by the page of 4096 bytes: there is no pmem device to read single sectors from", "good for trying with --simulate"
	case d.rawRead == nil && f.tryVerdict(t, Limited) == Unknown:
		r.Verdict, r.Next = Unknown, f.askAgain()
		r.Found = d.path + " may be read; whether a file's sectors are found on it was " + f.untriedBecause(t)
	case d.rawRead == nil && t.works():
		r.Verdict, r.Found = OK, "by the sector of 512 bytes: one that was written to a file was read from "+d.path
	default:
		r.Found, r.Next = "by the page of 4096 bytes: "+f.sectorReason(), sectorNext(f)
	}
	return r
}

// sectorReason says why there are no single sectors.
func (f *facts) sectorReason() string {
	if err := f.medium.device.rawRead; err != nil {
		return err.Error()
	}
	return f.scratch.blocks.sector.reason()
}

func sectorNext(f *facts) string {
	if errors.Is(f.medium.device.rawRead, pmem.ErrNoRaw) && !f.host.admin {
		return "root can read the good sectors of a bad page"
	}
	return "a namespace with 512-byte sectors (ndctl create-namespace --sector-size=512) would lose less"
}

// judgeClearing is the ladder: how a bad page becomes usable again, best first.
func (f *facts) judgeClearing() Finding {
	d := f.medium.device
	r := Finding{Check: "clearing", Verdict: Limited}
	switch {
	case d.hidden():
		r.Found, r.Next = "what a write clears is up to the device, which can't be seen", "see 'device'"
		return r
	case !d.pmem():
		r.Found = "what a write clears is up to the device"
		r.Next = "try 'mendfs demo', or --simulate, to see it on simulated memory"
		return r
	case d.bus.clears() == no:
		return Finding{Check: "clearing", Verdict: No, Found: "the firmware takes no command to clear (bus " + d.bus.provider + ")",
			Next: "bad pages stay bad, and writes to them fail; what was readable in them is kept and served. Ask the vendor for firmware"}
	case f.isDAX() == no:
		r.Found = "a write clears through the page cache and the block layer, when it is written back"
		r.Next = "mount the filesystem with -o dax=always"
		return r
	}
	rungs := f.ladder()
	if len(rungs) == 0 {
		return Finding{Check: "clearing", Verdict: No, Found: "nothing that this kernel, filesystem and user can do", Next: "Linux 5.19 or newer clears by an aligned write; root may write the raw device"}
	}
	r.Found = strings.Join(rungs, ", then ")
	if d.bus.clears() == unknown {
		r.Found += "; whether the firmware of bus " + dash(d.bus.provider) + " can clear is not known"
	}
	if r.Next = "Linux 5.19 or newer clears by an aligned write"; f.host.atLeast(5, 19) {
		r.Verdict, r.Next = OK, ""
	}
	return r
}

// ladder is the rungs in their order (design 6.6). Only what the kernel's
// version decides can't be tried without poison.
func (f *facts) ladder() (rungs []string) {
	if f.host.atLeast(5, 19) {
		rungs = append(rungs, "a write of an aligned 4096-byte page (by the kernel's version: it can't be tried without poison)")
	}
	if f.medium.device.rawWrite == nil {
		rungs = append(rungs, "the raw device")
	}
	if f.host.atLeast(5, 19) {
		return rungs
	}
	if !f.scratch.punch.done || f.scratch.punch.works() {
		rungs = append(rungs, "punch a hole and write the page")
	}
	if f.medium.mount.fstype == "ext4" && f.scratch.zeroRange.works() {
		rungs = append(rungs, "zero the range and write the page")
	}
	return rungs
}

func (f *facts) judgeRaw() Finding {
	d := f.medium.device
	switch {
	case d.hidden():
		return Finding{Check: "raw device", Verdict: Limited, Found: "the device can't be seen", Next: "see 'device'"}
	case !d.pmem():
		return Finding{Check: "raw device", Verdict: Limited, Found: "no pmem device to clear single sectors on", Next: "good for trying with --simulate"}
	case d.rawWrite != nil:
		return Finding{Check: "raw device", Verdict: Limited, Found: d.path + ": " + d.rawWrite.Error(), Next: "it is the only cure for pages that files share; root may be allowed to"}
	}
	return Finding{Check: "raw device", Verdict: OK, Found: d.path + " may be written, for pages that nothing else clears"}
}

// judgeFallocate is the rungs for old kernels, and what programs use.
func (f *facts) judgeFallocate() Finding {
	r := Finding{Check: "fallocate", Verdict: OK}
	var works, fails []string
	for _, mode := range []struct {
		name string
		trial
	}{{"punch hole", f.scratch.punch}, {"zero range", f.scratch.zeroRange}} {
		switch f.tryVerdict(mode.trial, Limited) {
		case Unknown:
			return Finding{Check: "fallocate", Verdict: Unknown, Found: f.untriedBecause(mode.trial), Next: f.askAgain()}
		case OK:
			works = append(works, mode.name)
		default:
			fails = append(fails, "not "+mode.name+": "+mode.reason())
		}
	}
	r.Found = strings.Join(append(works, fails...), ", ")
	if len(fails) > 0 {
		r.Verdict, r.Next = Limited, "programs that use it write zeros instead"
	}
	return r
}

// judgeReflink: a shared bad page can't be cured by writing to either file.
func (f *facts) judgeReflink() Finding {
	t := f.scratch.clone
	r := Finding{Check: "reflink", Verdict: OK}
	switch {
	case f.tryVerdict(t, OK) == Unknown:
		r.Verdict, r.Found, r.Next = Unknown, f.untriedBecause(t), f.askAgain()
	case !t.works():
		r.Found = "files can't share blocks (" + t.reason() + ")"
	case !f.medium.device.pmem():
		r.Found = "files can share blocks"
	case f.medium.device.rawWrite == nil:
		r.Found = "files can share blocks; a bad page that is shared is cleared on the raw device"
	default:
		r.Verdict, r.Found = Limited, "files can share blocks; a bad page that is shared can't be cleared by writing"
		r.Next = "copy such a file with 'cp --reflink=never' through the mount, and remove the old ones"
	}
	return r
}
