package doctor

import (
	"fmt"
	"strings"
)

func (f *facts) judgeOtherPaths() Finding {
	if len(f.medium.others) == 0 {
		return Finding{Check: "other paths", Verdict: OK, Found: "no other mount shows these files; mount without MOUNTPOINT to cover their own path too"}
	}
	return Finding{Check: "other paths", Verdict: Limited, Found: "also mounted at " + shorten(f.medium.others), Next: "use of these files by another path is not protected"}
}

func (f *facts) judgeNamespaces() Finding {
	u := f.users
	switch {
	case len(u.exposed) > 0:
		return Finding{Check: "namespaces", Verdict: Limited, Found: "a mount over these files does not appear at " + shorten(u.exposed), Next: "start these programs again after mounting, or use these files by shared mounts (mount --make-rshared)"}
	case !u.all:
		return Finding{Check: "namespaces", Verdict: Unknown, Found: "mounts that others have for themselves can't be looked at", Next: "ask again as root"}
	}
	return Finding{Check: "namespaces", Verdict: OK, Found: "no process has another mount of these files for itself"}
}

func (f *facts) judgeUsers() Finding {
	u := f.users
	switch {
	case len(u.found) > 0:
		return Finding{Check: "direct users", Verdict: Limited, Found: shorten(u.found), Next: "stop them before mounting: what they have open stays unprotected"}
	case !u.all:
		return Finding{Check: "direct users", Verdict: Unknown, Found: "none among your processes; others can't be looked at", Next: "ask again as root"}
	}
	return Finding{Check: "direct users", Verdict: OK, Found: "none"}
}

func (f *facts) judgeDeviceUsers() Finding {
	u, d := f.users, f.medium.device
	r := Finding{Check: "device users", Verdict: Limited, Next: "whoever writes the device below a filesystem damages it; a repair on the raw device may be undone"}
	switch {
	case d.path == "":
		return Finding{Check: "device users", Verdict: OK, Found: "no block device"}
	case len(u.raw) > 0:
		r.Found = d.path + " is open in " + shorten(u.raw)
	case len(d.holders) > 0:
		r.Found, r.Next = strings.Join(d.holders, ", ")+" also lie on "+d.path, "poison there is not looked after"
	case !u.all:
		r.Verdict, r.Found, r.Next = Unknown, "none among your processes; others can't be looked at", "ask again as root"
	default:
		r.Verdict, r.Found, r.Next = OK, "nobody has "+d.path+" open", ""
	}
	return r
}

func (f *facts) judgeState() Finding {
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

// roomForRecords is what a state directory should have to spare: images for
// 64 MiB of pages, once more while they are rewritten.
const roomForRecords = 128 << 20

func (f *facts) judgeStateSpace() Finding {
	s := f.store
	r := Finding{Check: "state space", Verdict: OK, Found: fmt.Sprintf("%d MiB free at %s", s.free>>20, s.dir)}
	switch {
	case s.err != nil:
		return Finding{Check: "state space", Verdict: Unknown, Found: s.err.Error(), Next: "name a directory with --state when mounting"}
	case s.write != nil:
		r.Verdict, r.Found, r.Next = Limited, s.dir+" can't be written: "+cause(s.write), "name another directory with --state when mounting"
	case s.together:
		r.Verdict, r.Next = Limited, "name one on another device with --state: records of loss should not be lost with it"
		r.Found += ", on the same persistent memory"
	case s.free < roomForRecords:
		r.Verdict, r.Next = Limited, "make room, or name another directory with --state: a repair needs room for images of pages"
	}
	return r
}
