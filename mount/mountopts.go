package mount

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountFlags is what the options of -o add up to.
type mountFlags struct {
	set, clear uintptr  // MS_* bits to be set and cleared against the backing's own
	words      []string // the same as words, for fusermount3
	readOnly   bool
	allowOther bool
	source     string // fsname=
}

// flagWords are the options that are bits of mount(2).
var flagWords = map[string]struct{ set, clear uintptr }{
	"nosuid":      {set: unix.MS_NOSUID},
	"suid":        {clear: unix.MS_NOSUID},
	"nodev":       {set: unix.MS_NODEV},
	"dev":         {clear: unix.MS_NODEV},
	"noexec":      {set: unix.MS_NOEXEC},
	"exec":        {clear: unix.MS_NOEXEC},
	"noatime":     {set: unix.MS_NOATIME, clear: unix.MS_RELATIME | unix.MS_STRICTATIME},
	"relatime":    {set: unix.MS_RELATIME, clear: unix.MS_NOATIME | unix.MS_STRICTATIME},
	"strictatime": {set: unix.MS_STRICTATIME, clear: unix.MS_NOATIME | unix.MS_RELATIME},
	"nodiratime":  {set: unix.MS_NODIRATIME},
	"diratime":    {clear: unix.MS_NODIRATIME},
}

// ignoredWords mean something to mount(8), systemd or /etc/fstab, not to us.
var ignoredWords = map[string]bool{
	"": true, "defaults": true, "rw": true, "auto": true, "noauto": true, "nofail": true, "_netdev": true,
	"user": true, "nouser": true, "users": true, "owner": true, "group": true, "nogroup": true, "noowner": true, "nousers": true,
	"async": true, "nomand": true, "nolazytime": true, "symfollow": true, "silent": true, "loud": true, "default_permissions": true, // so it is anyway
}

// parseMountOpts reads the words of -o; later ones win. Words may themselves
// hold several, separated by commas. An unknown word is refused by name.
func parseMountOpts(opts []string) (mountFlags, error) {
	var f mountFlags
	for _, word := range strings.Split(strings.Join(opts, ","), ",") {
		if err := f.add(strings.TrimSpace(word)); err != nil {
			return mountFlags{}, err
		}
	}
	return f, nil
}

func (f *mountFlags) add(word string) error {
	name, value, hasValue := strings.Cut(word, "=")
	bits, isFlag := flagWords[word]
	switch {
	case isFlag:
		f.set = f.set&^bits.clear | bits.set
		f.clear = f.clear&^bits.set | bits.clear
		f.words = append(f.words, word)
	case word == "ro":
		f.readOnly = true
	case word == "rw":
		f.readOnly = false
	case word == "allow_other":
		f.allowOther = true
	case name == "fsname" && value != "":
		f.source = value
	case ignoredWords[word], strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"), name == "comment" && hasValue:
	default:
		return usage("use the options of mount(8), or the flags that mendfs mount --help lists", "unknown mount option %q", word)
	}
	return nil
}

// msFlags translates the options of a mount, as mountinfo prints them, into
// the bits of mount(2).
func msFlags(options []string) uintptr {
	var flags uintptr
	for _, word := range options {
		flags |= flagWords[word].set
	}
	return flags
}

// atimeAttr translates what the bits of mount(2) say of access times into
// those of mount_setattr(2). No bit is what mountinfo has for strictatime.
func atimeAttr(flags uintptr) (attr uint64) {
	switch {
	case flags&unix.MS_NOATIME != 0:
		attr = unix.MOUNT_ATTR_NOATIME
	case flags&unix.MS_RELATIME != 0:
		attr = unix.MOUNT_ATTR_RELATIME
	default:
		attr = unix.MOUNT_ATTR_STRICTATIME
	}
	if flags&unix.MS_NODIRATIME != 0 {
		attr |= unix.MOUNT_ATTR_NODIRATIME
	}
	return attr
}
