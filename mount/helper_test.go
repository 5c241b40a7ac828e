package mount

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

// TestUnchanged is what a remount may name without effect, and what not.
func TestUnchanged(t *testing.T) {
	for name, c := range map[string]struct {
		words   string
		now     []string // options of the mount
		status  control.Status
		refused bool
	}{
		"nothing":             {"", []string{"rw", "relatime"}, control.Status{}, false},
		"to read-only":        {"ro", []string{"rw", "relatime"}, control.Status{}, false},
		"back":                {"rw", []string{"ro", "relatime"}, control.Status{}, false},
		"still read-only":     {"ro", []string{"ro"}, control.Status{ReadOnly: true}, false},
		"rw of ro":            {"rw", []string{"ro"}, control.Status{ReadOnly: true}, true},
		"the same atime":      {"noatime", []string{"noatime"}, control.Status{}, false},
		"default atime":       {"relatime", []string{"relatime"}, control.Status{}, false},
		"strictatime as is":   {"strictatime", []string{"rw"}, control.Status{}, false},
		"atime and back":      {"relatime,noatime,relatime", []string{"relatime"}, control.Status{}, false},
		"noatime":             {"relatime,noatime", []string{"relatime"}, control.Status{}, true},
		"strictatime":         {"strictatime", []string{"relatime"}, control.Status{}, true},
		"nodiratime":          {"nodiratime", []string{"relatime"}, control.Status{}, true},
		"allow_other":         {"allow_other", nil, control.Status{}, true},
		"allow_other as is":   {"allow_other", nil, control.Status{AllowOther: true}, false},
		"fsname":              {"fsname=x", nil, control.Status{}, true},
		"fsname as is":        {"fsname=src", nil, control.Status{}, false},
		"what the kernel has": {"nosuid,nodev,noexec", []string{"relatime"}, control.Status{}, false},
	} {
		f, err := parseMountOpts([]string{c.words})
		if err != nil {
			t.Fatal(err)
		}
		p := &place{path: "/m", mount: mountEntry{Options: c.now, Source: "src"}}
		if err := p.unchanged(f, c.status); (err != nil) != c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRemountFlags: what is not named goes, as with mount(8), but not what is
// the backing's own.
func TestRemountFlags(t *testing.T) {
	self, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	below := self[0]
	own := msFlags(below.Options)
	for name, c := range map[string]struct {
		words string
		now   []string
		want  uintptr
	}{
		"all goes":           {"rw", []string{"ro", "nosuid", "noexec"}, own & (unix.MS_NOSUID | unix.MS_NOEXEC)},
		"added":              {"ro,nosuid,nodev", []string{"rw", "relatime"}, unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RELATIME},
		"the backing's own":  {"ro", below.Options, own | unix.MS_RDONLY},
		"unless taken away":  {"suid,dev,exec", below.Options, own & atimeFlags},
		"access times, kept": {"rw,relatime", []string{"relatime", "nodiratime"}, unix.MS_RELATIME | unix.MS_NODIRATIME},
	} {
		f, err := parseMountOpts([]string{c.words})
		if err != nil {
			t.Fatal(err)
		}
		p := &place{path: "/m", mount: mountEntry{Parent: below.ID, Options: c.now}}
		got, err := p.remountFlags(f, control.Status{OverMounted: true})
		if err != nil || got != c.want {
			t.Errorf("%s: %#x, %v, want %#x", name, got, err, c.want)
		}
	}
}
