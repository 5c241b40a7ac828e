package mount

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

func TestMountOpts(t *testing.T) {
	for name, c := range map[string]struct {
		opts       []string
		set, clear uintptr
		readOnly   bool
		allowOther bool
		source     string
	}{
		"none":                     {},
		"ro":                       {opts: []string{"ro"}, readOnly: true},
		"the later one wins":       {opts: []string{"ro", "rw"}},
		"flags":                    {opts: []string{"nosuid", "nodev", "noexec"}, set: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		"suid takes nosuid back":   {opts: []string{"nosuid", "suid"}, clear: unix.MS_NOSUID},
		"nosuid takes suid back":   {opts: []string{"suid", "nosuid"}, set: unix.MS_NOSUID},
		"noatime against relatime": {opts: []string{"relatime", "noatime"}, set: unix.MS_NOATIME, clear: unix.MS_RELATIME | unix.MS_STRICTATIME},
		"several in one word":      {opts: []string{"ro,allow_other"}, readOnly: true, allowOther: true},
		"fsname":                   {opts: []string{"fsname=a=b"}, source: "a=b"},
		"other people's words":     {opts: []string{"_netdev", "nofail", "noauto", "user", "x-systemd.automount", "comment=hello", "", "defaults"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := parseMountOpts(c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if f.set != c.set || f.clear != c.clear || f.readOnly != c.readOnly || f.allowOther != c.allowOther || f.source != c.source {
				t.Errorf("%q gives %+v", c.opts, f)
			}
		})
	}
}

func TestUnknownMountOptIsNamed(t *testing.T) {
	for _, word := range []string{"nosiud", "fsname", "fsname=", "uid=0", "allow_root", "comment"} {
		_, err := parseMountOpts([]string{"ro", word})
		var e *Error
		if !errors.As(err, &e) || e.Exit != control.ExitUsage || !strings.Contains(e.Msg, `"`+word+`"`) {
			t.Errorf("%q: %v", word, err)
		}
	}
}

func FuzzMountOpts(f *testing.F) {
	for _, seed := range []string{"ro,nosuid", "x-a,fsname=b", ",,", "suid,nosuid,dev", "a=b=c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseMountOpts([]string{text})
		if err == nil && got.set&got.clear != 0 {
			t.Errorf("%q sets and clears %#x", text, got.set&got.clear)
		}
		split, errSplit := parseMountOpts(strings.Split(text, ","))
		if (err == nil) != (errSplit == nil) || split.set != got.set || split.clear != got.clear || split.source != got.source {
			t.Errorf("%q: %+v, %v in one piece, %+v, %v in words", text, got, err, split, errSplit)
		}
	})
}

func TestMountinfo(t *testing.T) {
	all, err := parseMountinfo(`27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
44 27 0:55 / /srv/a\040b\134c rw,nosuid shared:7 master:2 - fuse.mendfs /srv/a\040b rw,user_id=0
`)
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	if len(all) != 2 || last.ID != 44 || last.Dev != "0:55" || last.Mountpoint != `/srv/a b\c` || last.Type != FSType || last.Source != "/srv/a b" {
		t.Errorf("parsed as %+v", all)
	}
	if flags := msFlags(last.Options); flags != unix.MS_NOSUID {
		t.Errorf("flags %#x of %v", flags, last.Options)
	}
	for _, bad := range []string{"27 1 254:0 / /\n", "x 1 254:0 / / rw - ext4 /dev/vda rw\n", "\n"} {
		if _, err := parseMountinfo(bad); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		want      bool
	}{
		{"/srv/db", "/srv/db", true},
		{"/srv/db", "/srv/db/a/b", true},
		{"/srv/db", "/srv/db2", false},
		{"/srv/db", "/srv", false},
		{"/", "/srv", true},
	} {
		if got := below(c.dir, c.path); got != c.want {
			t.Errorf("below(%q, %q) = %v", c.dir, c.path, got)
		}
	}
}
