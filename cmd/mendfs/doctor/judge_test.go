package doctor

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onPmem is a machine on which everything is as it should be.
func onPmem() facts {
	return facts{
		path: "/srv/db",
		host: host{release: "6.12.1", major: 6, minor: 12, admin: true},
		medium: medium{
			name:    "0b1c",
			mount:   mountLine{fstype: "ext4", at: "/srv", source: "/dev/pmem0", super: []string{"rw", "dax=always"}},
			fileDAX: yes, queueDAX: yes, device: "/dev/pmem0", pmem: true,
		},
		users: users{all: true},
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*facts)
		check   string
		verdict Verdict
		says    string
		stops   bool
	}{
		{"new kernel", func(*facts) {}, "kernel", OK, "Linux 6.12.1", false},
		{"old kernel", func(f *facts) { f.host.major, f.host.minor = 5, 18 }, "kernel", Limited, "punching", false},
		{"old kernel", func(f *facts) { f.host.major, f.host.minor = 5, 18 }, "clearing", Limited, "punch a hole", false},
		{"5.19 clears", func(f *facts) { f.host.major, f.host.minor = 5, 19 }, "clearing", OK, "4096-byte page", false},
		{"before passthrough", func(f *facts) { f.host.minor = 8 }, "passthrough", OK, "no FUSE passthrough", false},
		{"dax by attribute", func(*facts) {}, "dax", OK, "yes", false},
		{"dax by option", func(f *facts) { f.medium.fileDAX = unknown }, "dax", OK, "yes", false},
		{"bare dax option", func(f *facts) { f.medium.fileDAX, f.medium.mount.super = unknown, []string{"dax"} }, "dax", OK, "yes", false},
		{"xfs fell back to never", func(f *facts) { f.medium.fileDAX, f.medium.mount.super = unknown, []string{"dax=never"} }, "dax", Limited, "no:", false},
		{"option on a device without", func(f *facts) { f.medium.fileDAX, f.medium.queueDAX = unknown, no }, "dax", Limited, "no:", false},
		{"attribute beats option", func(f *facts) { f.medium.fileDAX = no }, "dax", Limited, "no:", false},
		{"dax=inode, empty directory", func(f *facts) { f.medium.fileDAX, f.medium.mount.super = unknown, []string{"dax=inode"} }, "dax", Limited, "not known", false},
		{"not pmem", func(f *facts) { f.medium.pmem, f.medium.device = false, "/dev/sda1" }, "device", Limited, "/dev/sda1", false},
		{"no device", func(f *facts) { f.medium.pmem, f.medium.device = false, "" }, "device", Limited, "no block device", false},
		{"btrfs", func(f *facts) { f.medium.mount.fstype = "btrfs" }, "filesystem", Limited, "made for ext4 and XFS", false},
		{"read-only", func(f *facts) { f.medium.mount.options = []string{"ro"} }, "filesystem", Limited, "read-only", false},
		{"a mendfs mount", func(f *facts) { f.medium.mount.fstype = "fuse.mendfs" }, "filesystem", No, "is a mendfs mount", true},
		{"reflink", func(f *facts) { f.medium.mount.fstype = "xfs" }, "clearing", OK, "reflink", false},
		{"badblocks secret", func(f *facts) { f.medium.badblocks = unix.EACCES }, "badblocks", Limited, "permission denied", false},
		{"no fuse module", func(f *facts) { f.host.fuse = unix.ENODEV }, "/dev/fuse", No, "not there", true},
		{"fuse forbidden", func(f *facts) { f.host.fuse = unix.EACCES }, "/dev/fuse", No, "permission denied", true},
		{"user with fusermount3", func(f *facts) { f.host.admin, f.host.fusermount = false, "/bin/fusermount3" }, "mounting", Limited, "fusermount3", false},
		{"user without", func(f *facts) { f.host.admin = false }, "mounting", No, "neither", true},
		{"no open_tree", func(f *facts) { f.host.openTree = unix.EPERM }, "over-mount", Limited, "not permitted", false},
		{"no handles", func(f *facts) { f.host.handles = unix.EOPNOTSUPP }, "file handles", Limited, "has none", false},
		{"handles not for this user", func(f *facts) { f.host.byHandle = unix.EPERM }, "file handles", Limited, "open_by_handle_at", false},
		{"raw device forbidden", func(f *facts) { f.medium.raw = unix.EACCES }, "raw device", Limited, "permission denied", false},
		{"MAP_SYNC", func(*facts) {}, "MAP_SYNC", No, "never", false},
		{"bind mount", func(f *facts) { f.medium.others = []mountLine{{at: "/export"}} }, "other paths", Limited, "/export", false},
		{"many users", func(f *facts) { f.users.found = []user{{1, "a", 1}, {2, "b", 1}, {3, "c", 1}, {4, "d", 1}} }, "direct users", Limited, "a (pid 1), b (pid 2), c (pid 3) and 1 more", false},
		{"users unseen", func(f *facts) { f.users.all = false }, "direct users", Limited, "can't be looked at", false},
		{"open intents", func(f *facts) { f.state = State{Dir: "/s", OpenIntents: 2} }, "state", Limited, "2 intents open: do not use the backing directly before mounting", false},
		{"mounted", func(f *facts) { f.state = State{Dir: "/s", Running: "/srv/db"} }, "state", No, "already mounted at /srv/db", true},
		{"clean state", func(f *facts) { f.state = State{Dir: "/s"} }, "state", OK, "no intents open", false},
	} {
		t.Run(c.name+"/"+c.check, func(t *testing.T) {
			f := onPmem()
			c.change(&f)
			findings := f.judge()
			got := find(t, findings, c.check)
			if got.Verdict != c.verdict || !strings.Contains(got.Found, c.says) || got.Stops != c.stops {
				t.Errorf("got %+v, want %s, stops %v, saying %q", got, c.verdict, c.stops, c.says)
			}
			if got.Stops && got.Verdict != No {
				t.Errorf("it keeps mendfs from mounting, and is marked %s", got.Verdict)
			}
			if Stops(findings) != c.stops {
				t.Errorf("Stops = %v", !c.stops)
			}
		})
	}
}

func TestParseMountLine(t *testing.T) {
	got, err := parseMountLine(`36 35 259:0 /sub\040dir /mnt/a\011b rw,noatime master:1 - xfs /dev/pmem0 rw,attr2,dax=always`)
	if err != nil {
		t.Fatal(err)
	}
	if got.id != 36 || got.dev != "259:0" || got.root != "/sub dir" || got.at != "/mnt/a\tb" || got.fstype != "xfs" ||
		(medium{mount: got}).daxOption() != "always" {
		t.Errorf("%+v", got)
	}
	for _, line := range []string{"", "36 35", "x 35 259:0 / / rw - xfs", "36 35 259:0 / / rw xfs dev rw"} {
		if m, err := parseMountLine(line); err == nil {
			t.Errorf("%q gave %+v, want an error", line, m)
		}
	}
}

func TestAlsoReaching(t *testing.T) {
	own := mountLine{id: 1, dev: "8:1", root: "/", at: "/"}
	table := []mountLine{
		own,
		{id: 2, dev: "8:1", root: "/srv", at: "/export"},        // above the backing
		{id: 3, dev: "8:1", root: "/srv/db/inner", at: "/deep"}, // below it
		{id: 4, dev: "8:1", root: "/srv/dbx", at: "/else"},      // beside it
		{id: 5, dev: "8:2", root: "/", at: "/other"},            // another filesystem
	}
	var at []string
	for _, m := range alsoReaching(table, own, "/srv/db") {
		at = append(at, m.at)
	}
	if got := strings.Join(at, " "); got != "/export /deep" {
		t.Errorf("got %q", got)
	}
}
