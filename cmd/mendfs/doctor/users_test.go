package doctor

import (
	"slices"
	"strings"
	"testing"
)

// TestAskUsers has four processes: one with a file, one with the device, one in
// a namespace of its own that sees what is mounted, and one in one that does not.
func TestAskUsers(t *testing.T) {
	const line = "36 1 259:0 / /srv rw "
	from := fake(t)
	write(t, from.proc, map[string]string{
		"self/ns/mnt": "->mnt:[1]",

		"101/comm": "db\n", "101/ns/mnt": "->mnt:[1]", "101/fd/0": "->/dev/null", "101/fd/5": "->/srv/db/base/1",
		"101/maps": "7f00-7f01 rw-s 0 103:0 9 /srv/db/wal 1\n7f02-7f03 r-xp 0 103:0 9 /usr/bin/db\n",
		"102/comm": "dd\n", "102/ns/mnt": "->mnt:[1]", "102/fd/3": "->/dev/pmem0",
		"103/comm": "udevd\n", "103/ns/mnt": "->mnt:[2]", "103/mountinfo": "40" + line[2:] + "master:7 - ext4 /dev/pmem0 rw\n",
		"104/comm": "jail\n", "104/ns/mnt": "->mnt:[3]", "104/mountinfo": "9 1 0:1 / / rw - tmpfs none rw\n41" + line[2:] + "- ext4 /dev/pmem0 rw\n",
		"105/comm": "jailed\n", "105/ns/mnt": "->mnt:[3]",
		"106/comm": "hidden\n",
		"net/x":    "",
	})
	f := facts{from: from, path: "/srv/db", medium: medium{
		mount:  mountLine{id: 36, dev: "259:0", root: "/", at: "/srv", peers: []string{"shared:7"}},
		device: device{names: []string{"pmem0p1", "pmem0"}},
	}}
	f.askUsers()
	if got := f.users.found; !slices.Equal(got, []user{{101, "db", 2}}) {
		t.Errorf("direct users are %v", got)
	}
	if got := f.users.raw; !slices.Equal(got, []user{{102, "dd", 0}}) {
		t.Errorf("users of the device are %v", got)
	}
	if got := f.users.exposed; !slices.Equal(got, []exposure{{user{104, "jail", 0}, "/srv"}}) {
		t.Errorf("exposed is %v", got)
	}
}

func TestFollows(t *testing.T) {
	own := mountLine{root: "/", at: "/srv", peers: []string{"shared:7", "master:1"}}
	for _, c := range []struct {
		name string
		m    mountLine
		want bool
	}{
		{"peer", mountLine{root: "/", peers: []string{"shared:7"}}, true},
		{"slave", mountLine{root: "/", peers: []string{"master:7"}}, true},
		{"private", mountLine{root: "/"}, false},
		{"another group", mountLine{root: "/", peers: []string{"shared:70", "master:1"}}, false},
		{"peer of a part above", mountLine{root: "/db", peers: []string{"shared:7"}}, true},
		{"peer of a part below", mountLine{root: "/db/inner", peers: []string{"shared:7"}}, false},
	} {
		if got := c.m.follows(own, "/srv/db"); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if private := (mountLine{root: "/", at: "/srv"}); private.follows(private, "/srv/db") {
		t.Error("a private mount has followers")
	}
}

func TestMountTableRefusesNonsense(t *testing.T) {
	from := fake(t)
	write(t, from.proc, map[string]string{"mountinfo": "nonsense\n"})
	if table, err := mountTable(from.proc + "/mountinfo"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v, %v", table, err)
	}
}
