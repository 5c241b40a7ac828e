package mount

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAtimeAttr(t *testing.T) {
	for flags, want := range map[uintptr]uint64{
		unix.MS_NOATIME:                       unix.MOUNT_ATTR_NOATIME,
		unix.MS_RELATIME:                      unix.MOUNT_ATTR_RELATIME,
		unix.MS_STRICTATIME:                   unix.MOUNT_ATTR_STRICTATIME,
		0:                                     unix.MOUNT_ATTR_STRICTATIME,
		unix.MS_RELATIME | unix.MS_NODIRATIME: unix.MOUNT_ATTR_RELATIME | unix.MOUNT_ATTR_NODIRATIME,
		unix.MS_NOATIME | unix.MS_NODIRATIME:  unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODIRATIME,
		unix.MS_NOSUID | unix.MS_STRICTATIME:  unix.MOUNT_ATTR_STRICTATIME,
		unix.MS_NODEV | unix.MS_NODIRATIME:    unix.MOUNT_ATTR_STRICTATIME | unix.MOUNT_ATTR_NODIRATIME,
	} {
		if got := atimeAttr(flags); got != want {
			t.Errorf("%#x: %#x, want %#x", flags, got, want)
		}
	}
}

// TestAccessTimes: a read moves the access time by the options of the mount,
// whatever those of the backing are.
func TestAccessTimes(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		options      string
		old, current bool // moves one that is older than the last change; one that is not
	}{
		{"noatime", false, false},
		{"relatime", true, false},
		{"strictatime", true, true},
	} {
		t.Run(c.options, func(t *testing.T) {
			b := newBench(t)
			o := b.options()
			o.MountOpts = []string{c.options}
			b.write(b.backing+"/old", "x")
			b.write(b.backing+"/current", "x")
			now := time.Now()
			for name, atime := range map[string]time.Time{"old": now.Add(-time.Hour), "current": now.Add(time.Hour)} {
				if err := os.Chtimes(b.backing+"/"+name, atime, now); err != nil {
					t.Fatal(err)
				}
			}
			m := b.mount(o)
			for name, moves := range map[string]bool{"old": c.old, "current": c.current} {
				before := accessed(t, b.backing+"/"+name)
				b.read(b.point + "/" + name)
				if got := accessed(t, b.backing+"/"+name) != before; got != moves {
					t.Errorf("%s: moved: %v, want %v", name, got, moves)
				}
			}
			b.end(m)
		})
	}
}

func accessed(t *testing.T, path string) unix.Timespec {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Atim
}
