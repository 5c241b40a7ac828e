package doctor

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// onPmem is a machine on which everything is as it should be.
func onPmem() facts {
	f := facts{
		path: "/srv/db",
		host: host{
			release: "6.12.1", major: 6, minor: 12, admin: true, landlock: 7,
			protocol:   protocol{trial: tried(nil), major: 7, minor: 41, flags: fuse.CAP_PASSTHROUGH},
			copySafety: pmem.CopySafety{Safe: true, Known: true, Why: "machine checks are handled"},
		},
		medium: medium{
			name:    "0b1c",
			mount:   mountLine{fstype: "ext4", at: "/srv", source: "/dev/pmem0", super: []string{"rw", "dax=always"}},
			fileDAX: yes,
			device: device{
				path: "/dev/pmem0", names: []string{"pmem0"}, disks: []string{"pmem0"}, dax: yes,
				list: &pmem.List{Complete: true}, bus: bus{"ACPI.NFIT", []string{"ars_cap", "clear_error"}},
			},
		},
		scratch: scratch{
			open: tried(nil), fill: tried(nil), dax: yes, flagDAX: tried(nil), mapSync: tried(nil), direct: tried(nil),
			punch: tried(nil), zeroRange: tried(nil), clone: tried(unix.EOPNOTSUPP),
			blocks: blocks{place: tried(nil), sector: tried(nil), owner: tried(nil)},
		},
		users: users{all: true},
		store: store{dir: "/var/lib/mendfs", free: 1 << 40},
	}
	return f
}

// listed is a list with one bad sector.
func listed(complete bool) *pmem.List {
	list := &pmem.List{Complete: complete}
	list.Bad.Add(ranges.Range{Off: 4096, Len: 512})
	return list
}

// noFile is a backing in which nothing can be tried.
func noFile(f *facts) { f.scratch = scratch{open: tried(unix.EROFS)} }

// noContent is a backing that is full: files can be made, and not filled.
func noContent(f *facts) {
	s := &f.scratch
	s.fill, s.direct, s.punch, s.zeroRange, s.blocks = tried(unix.ENOSPC), trial{}, trial{}, trial{}, blocks{}
}

// ordinary is a user without rights who mounts through fusermount3.
func ordinary(f *facts) {
	f.host.admin, f.host.fusermount, f.host.setuid = false, "/bin/fusermount3", true
	f.host.protocol = protocol{trial: untried("only root")}
}

// notPmem is an ordinary disk.
func hidden(f *facts) {
	f.medium.device = device{notPmem: fmt.Errorf("device 259:1: %w", pmem.ErrHidden)}
}

func notPmem(f *facts) { f.medium.device.notPmem = pmem.ErrNotPmem }

func TestJudge(t *testing.T) {
	noRaw := fmt.Errorf("%w: %w", pmem.ErrNoRaw, unix.EACCES)
	big := fmt.Errorf("%w: the sectors have 4096 bytes", pmem.ErrNoRaw)
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
		{"fuse there", func(*facts) {}, "/dev/fuse", OK, "opened", false},
		{"no fuse module", func(f *facts) { f.host.fuse = unix.ENODEV }, "/dev/fuse", No, "not there", true},
		{"fuse forbidden", func(f *facts) { f.host.fuse = unix.EACCES }, "/dev/fuse", No, "permission denied", true},
		{"notifications", func(*facts) {}, "notifications", OK, "FUSE 7.41", false},
		{"notifications of old", func(f *facts) { f.host.protocol.minor = 12 }, "notifications", Limited, "7.12", false},
		{"notifications unasked", ordinary, "notifications", Unknown, "only root", false},
		{"notifications failed", func(f *facts) { f.host.protocol = protocol{trial: tried(unix.EPERM)} }, "notifications", Unknown, "not permitted", false},
		{"passthrough", func(*facts) {}, "passthrough", OK, "offers FUSE passthrough", false},
		{"passthrough not built in", func(f *facts) { f.host.protocol.flags = 0 }, "passthrough", OK, "no FUSE passthrough", false},
		{"passthrough unasked", ordinary, "passthrough", OK, "root only", false},
		{"passthrough failed", func(f *facts) { f.host.protocol = protocol{trial: tried(unix.ENOSYS)} }, "passthrough", Unknown, "not asked", false},
		{"root mounts", func(*facts) {}, "mounting", OK, "CAP_SYS_ADMIN", false},
		{"user with fusermount3", ordinary, "mounting", Limited, "yourself only", false},
		{"user for all", func(f *facts) { ordinary(f); f.host.allowOther = true }, "mounting", Limited, "--allow-other", false},
		{"user with a plain fusermount3", func(f *facts) { ordinary(f); f.host.setuid = false }, "mounting", No, "does not run as root", true},
		{"user without", func(f *facts) { f.host.admin = false }, "mounting", No, "neither", true},
		{"no open_tree", func(f *facts) { f.host.openTree = unix.EPERM }, "over-mount", Limited, "not permitted", false},
		{"no handles", func(f *facts) { f.host.handles = unix.EOPNOTSUPP }, "file handles", Limited, "has none", false},
		{"handles not for this user", func(f *facts) { f.host.byHandle = unix.EPERM }, "file handles", Limited, "open_by_handle_at", false},
		{"landlock", func(*facts) {}, "landlock", OK, "version 7", false},
		{"landlock 1", func(f *facts) { f.host.landlock = 1 }, "landlock", Limited, "renames", false},
		{"no landlock", func(f *facts) { f.host.noLandlock = unix.EOPNOTSUPP }, "landlock", Limited, "not supported", false},

		{"btrfs", func(f *facts) { f.medium.mount.fstype = "btrfs" }, "filesystem", Limited, "made for ext4 and XFS", false},
		{"read-only", func(f *facts) { f.medium.mount.options = []string{"ro"} }, "filesystem", Limited, "read-only", false},
		{"a mendfs mount", func(f *facts) { f.medium.mount.fstype = "fuse.mendfs" }, "filesystem", No, "is a mendfs mount", true},
		{"proc", func(f *facts) { f.medium.mount.fstype = "proc" }, "filesystem", No, "makes up", true},
		{"no quotas", func(*facts) {}, "quotas", OK, "none", false},
		{"quotas", func(f *facts) { f.medium.mount.super = []string{"rw", "usrjquota=aquota.user", "prjquota"} }, "quotas", OK, "usrjquota, prjquota", false},
		{"quotas of others", func(f *facts) { ordinary(f); f.medium.mount.super = []string{"usrquota"} }, "quotas", Limited, "counts as yours", false},
		{"pmem", func(*facts) {}, "device", OK, "ACPI.NFIT", false},
		{"not pmem", notPmem, "device", Limited, "not on persistent memory", false},
		{"no device", func(f *facts) { f.medium.device = device{} }, "device", Limited, "no block device", false},
		{"dax by attribute", func(*facts) {}, "dax", OK, "yes", false},
		{"dax by a new file", func(f *facts) { f.medium.fileDAX, f.medium.device.dax = unknown, no }, "dax", OK, "yes", false},
		{"dax by option", func(f *facts) { f.medium.fileDAX, f.scratch.dax = unknown, unknown }, "dax", OK, "yes", false},
		{"bare dax option", func(f *facts) { noFile(f); f.medium.fileDAX, f.medium.mount.super = unknown, []string{"dax"} }, "dax", OK, "yes", false},
		{"xfs fell back to never", func(f *facts) { noFile(f); f.medium.fileDAX, f.medium.mount.super = unknown, []string{"dax=never"} }, "dax", Limited, "no:", false},
		{"option on a device without", func(f *facts) { noFile(f); f.medium.fileDAX, f.medium.device.dax = unknown, no }, "dax", Limited, "no:", false},
		{"attribute beats option", func(f *facts) { noFile(f); f.medium.fileDAX = no }, "dax", Limited, "no:", false},
		{"some files only", func(f *facts) { f.medium.fileDAX = no }, "dax", Limited, "not for all files", false},
		{"dax=inode, nothing to be seen", func(f *facts) { noFile(f); f.medium.fileDAX, f.medium.mount.super = unknown, []string{"dax=inode"} }, "dax", Unknown, "not known", false},
		{"no dax without pmem", func(f *facts) { notPmem(f); f.medium.fileDAX, f.scratch.dax = no, no }, "dax", Limited, "no:", false},
		{"mark under dax=always", func(*facts) {}, "dax per file", OK, "decides for all", false},
		{"mark counts", func(f *facts) { f.medium.mount.super = nil }, "dax per file", OK, "opened anew", false},
		{"mark in vain", func(f *facts) { f.medium.mount.super, f.medium.device.dax = nil, no }, "dax per file", Limited, "the device", false},
		{"no marks", func(f *facts) { f.scratch.flagDAX = tried(unix.EOPNOTSUPP) }, "dax per file", Limited, "can't be marked", false},
		{"marks untried", noFile, "dax per file", Unknown, "read-only file system", false},
		{"MAP_SYNC", func(*facts) {}, "MAP_SYNC", No, "never", false},
		{"MAP_SYNC not there", func(f *facts) { f.scratch.mapSync = tried(unix.EOPNOTSUPP) }, "MAP_SYNC", OK, "nothing changes", false},
		{"MAP_SYNC untried", noFile, "MAP_SYNC", No, "read-only file system", false},

		{"nothing listed", func(*facts) {}, "badblocks", OK, "bad ranges: 0", false},
		{"something listed", func(f *facts) { f.medium.device.list = listed(true) }, "badblocks", OK, "bad ranges: 1 (512 bytes)", false},
		{"list cut", func(f *facts) { f.medium.device.list = listed(false) }, "badblocks", Limited, "cut", false},
		{"list not read", func(f *facts) { f.medium.device.list = nil }, "badblocks", Unknown, "not read", false},
		{"badblocks secret", func(f *facts) { f.medium.device.badblocks = unix.EACCES }, "badblocks", Limited, "permission denied", false},
		{"a device that is hidden", hidden, "device", Limited, "can't be seen in /sys", false},
		{"its list", hidden, "badblocks", Limited, "can't be seen", false},
		{"its sectors", hidden, "salvage", Limited, "by the page", false},
		{"its clearing", hidden, "clearing", Limited, "can't be seen", false},
		{"it, raw", hidden, "raw device", Limited, "can't be seen", false},
		{"no list", notPmem, "badblocks", Limited, "keeps no list", false},
		{"changes on NFIT", func(*facts) {}, "list changes", OK, "announces", false},
		{"changes on e820", func(f *facts) { f.medium.device.bus.provider = "e820" }, "list changes", Limited, "not announced", false},
		{"changes elsewhere", func(f *facts) { f.medium.device.bus.provider = "cxl" }, "list changes", Unknown, "cxl", false},
		{"changes without a list", notPmem, "list changes", Limited, "no list", false},
		{"owners", func(*facts) {}, "owners", OK, "GETFSMAP", false},
		{"no owners", func(f *facts) { f.scratch.blocks.owner = tried(errNoOwner) }, "owners", Limited, "not say whose", false},
		{"owners for root", func(f *facts) { f.scratch.blocks.owner = tried(pmem.ErrNoMap) }, "owners", Limited, "GETFSMAP", false},
		{"owners untried", noFile, "owners", Unknown, "read-only file system", false},
		{"safe copy", func(*facts) {}, "machine check", OK, "handled", false},
		{"fatal copy", func(f *facts) { f.host.copySafety = pmem.CopySafety{Known: true, Why: "arm64"} }, "machine check", No, "stops the machine: arm64", false},
		{"copy not known", func(f *facts) { f.host.copySafety = pmem.CopySafety{Why: "riscv64"} }, "machine check", Unknown, "riscv64", false},
		{"fatal copy elsewhere", func(f *facts) { notPmem(f); f.host.copySafety = pmem.CopySafety{Known: true, Why: "arm64"} }, "machine check", Limited, "would matter", false},
		{"salvage by sector", func(*facts) {}, "salvage", OK, "512 bytes", false},
		{"salvage by page", func(f *facts) { f.medium.device.rawRead = noRaw }, "salvage", Limited, "permission denied", false},
		{"salvage of big sectors", func(f *facts) { f.medium.device.rawRead = big }, "salvage", Limited, "4096 bytes", false},
		{"salvage of other bytes", func(f *facts) { f.scratch.blocks.sector = tried(errWrongBytes) }, "salvage", Limited, "other bytes", false},
		{"salvage without a place", func(f *facts) { f.scratch.blocks.sector = untried("no place") }, "salvage", Unknown, "no place", false},
		{"salvage on a full disk", noContent, "salvage", Unknown, "no space left", false},
		{"owners on a full disk", noContent, "owners", Unknown, "no space left", false},
		{"fallocate on a full disk", noContent, "fallocate", Unknown, "no space left", false},
		{"reflink on a full disk", noContent, "reflink", OK, "can't share", false},
		{"MAP_SYNC on a full disk", noContent, "MAP_SYNC", No, "works on the backing", false},
		{"salvage untried", noFile, "salvage", Unknown, "read-only file system", false},
		{"salvage elsewhere", notPmem, "salvage", Limited, "4096 bytes", false},
		{"old kernel", func(f *facts) { f.host.major, f.host.minor = 5, 18 }, "clearing", Limited, "the raw device, then punch a hole and write the page, then zero", false},
		{"old kernel, xfs", func(f *facts) { f.host.major, f.host.minor, f.medium.mount.fstype = 5, 18, "xfs" }, "clearing", Limited, "punch a hole and write the page", false},
		{"5.19 clears", func(f *facts) { f.host.major, f.host.minor = 5, 19 }, "clearing", OK, "4096-byte page", false},
		{"no rung at all", func(f *facts) {
			f.host.major, f.host.minor = 5, 18
			f.scratch.punch, f.scratch.zeroRange, f.medium.device.rawWrite = tried(unix.EOPNOTSUPP), tried(unix.EOPNOTSUPP), noRaw
		}, "clearing", No, "nothing", false},
		{"firmware without", func(f *facts) { f.medium.device.bus.commands = nil }, "clearing", No, "firmware", false},
		{"firmware of e820", func(f *facts) { f.medium.device.bus = bus{provider: "e820"} }, "clearing", OK, "4096-byte page", false},
		{"firmware unknown", func(f *facts) { f.medium.device.bus = bus{provider: "cxl"} }, "clearing", OK, "not known", false},
		{"clearing without dax", func(f *facts) { f.medium.fileDAX = no }, "clearing", Limited, "page cache", false},
		{"clearing elsewhere", notPmem, "clearing", Limited, "up to the device", false},
		{"raw device", func(*facts) {}, "raw device", OK, "may be written", false},
		{"raw device forbidden", func(f *facts) { f.medium.device.rawWrite = noRaw }, "raw device", Limited, "permission denied", false},
		{"no raw device", notPmem, "raw device", Limited, "no pmem", false},
		{"fallocate", func(*facts) {}, "fallocate", OK, "punch hole, zero range", false},
		{"no zero range", func(f *facts) { f.scratch.zeroRange = tried(unix.EOPNOTSUPP) }, "fallocate", Limited, "zero range: operation not supported", false},
		{"fallocate untried", noFile, "fallocate", Unknown, "read-only file system", false},
		{"no reflink", func(*facts) {}, "reflink", OK, "can't share", false},
		{"reflink and raw", func(f *facts) { f.scratch.clone = tried(nil) }, "reflink", OK, "on the raw device", false},
		{"reflink without raw", func(f *facts) { f.scratch.clone, f.medium.device.rawWrite = tried(nil), noRaw }, "reflink", Limited, "can't be cleared", false},
		{"reflink elsewhere", func(f *facts) { notPmem(f); f.scratch.clone, f.medium.device.rawWrite = tried(nil), noRaw }, "reflink", OK, "share", false},
		{"reflink untried", noFile, "reflink", Unknown, "read-only file system", false},

		{"bind mount", func(f *facts) { f.medium.others = []mountLine{{at: "/export"}} }, "other paths", Limited, "/export", false},
		{"own namespace only", func(*facts) {}, "namespaces", OK, "no process", false},
		{"a service by itself", func(f *facts) { f.users.exposed = []exposure{{user{7, "udevd", 0}, "/srv"}} }, "namespaces", Limited, "/srv for udevd (pid 7)", false},
		{"namespaces unseen", func(f *facts) { f.users.all = false }, "namespaces", Unknown, "can't be looked at", false},
		{"many users", func(f *facts) { f.users.found = []user{{1, "a", 1}, {2, "b", 1}, {3, "c", 1}, {4, "d", 1}} }, "direct users", Limited, "a (pid 1), b (pid 2), c (pid 3) and 1 more", false},
		{"users unseen", func(f *facts) { f.users.all = false }, "direct users", Unknown, "can't be looked at", false},
		{"device to ourselves", func(*facts) {}, "device users", OK, "nobody", false},
		{"device open", func(f *facts) { f.users.raw = []user{{9, "dd", 0}} }, "device users", Limited, "dd (pid 9)", false},
		{"device shared", func(f *facts) { f.medium.device.holders = []string{"dm-3"} }, "device users", Limited, "dm-3", false},
		{"device users unseen", func(f *facts) { f.users.all = false }, "device users", Unknown, "can't be looked at", false},
		{"no device to open", func(f *facts) { f.medium.device = device{} }, "device users", OK, "no block device", false},
		{"no state yet", func(*facts) {}, "state", OK, "none yet", false},
		{"open intents", func(f *facts) { f.state = State{Dir: "/s", OpenIntents: 2} }, "state", Limited, "2 intents open: do not use the backing directly before mounting", false},
		{"mounted", func(f *facts) { f.state = State{Dir: "/s", Running: "/srv/db"} }, "state", No, "already mounted at /srv/db", true},
		{"damaged state", func(f *facts) { f.state = State{Dir: "/s", Err: unix.EIO} }, "state", No, "input/output error", true},
		{"clean state", func(f *facts) { f.state = State{Dir: "/s"} }, "state", OK, "no intents open", false},
		{"room for records", func(*facts) {}, "state space", OK, "MiB free", false},
		{"no room for records", func(f *facts) { f.store.free = 1 << 20 }, "state space", Limited, "1 MiB free", false},
		{"records not to be written", func(f *facts) { f.store.write = unix.EROFS }, "state space", Limited, "read-only", false},
		{"records on the same pmem", func(f *facts) { f.store.together = true }, "state space", Limited, "same persistent memory", false},
		{"records nowhere", func(f *facts) { f.store.err = unix.EACCES }, "state space", Unknown, "permission denied", false},
	} {
		t.Run(c.name+"/"+c.check, func(t *testing.T) {
			f := onPmem()
			c.change(&f)
			findings := f.judge()
			got := find(t, findings, c.check)
			if got.Verdict != c.verdict || !strings.Contains(got.Found, c.says) || got.Stops != c.stops {
				t.Errorf("got %+v, want %s, stops %v, saying %q", got, c.verdict, c.stops, c.says)
			}
			if Stops(findings) != c.stops {
				t.Errorf("Stops = %v", !c.stops)
			}
			checkFindings(t, findings)
		})
	}
}

// Who has bad sectors is told how to find the files, and nobody else.
func TestNextOfTheList(t *testing.T) {
	for next, list := range map[string]*pmem.List{"": {Complete: true}, "mendfs scan names the files": listed(true)} {
		f := onPmem()
		f.medium.device.list = list
		if got := f.judgeBadblocks(); got.Next != next {
			t.Errorf("%d bad: next %q, want %q", list.Bad.Count(), got.Next, next)
		}
	}
}

// checkFindings holds what every report promises.
func checkFindings(t *testing.T, findings []Finding) {
	t.Helper()
	seen := map[string]bool{}
	for _, f := range findings {
		if !slices.Contains([]Verdict{OK, Limited, No, Unknown}, f.Verdict) || f.Check == "" || f.Found == "" || seen[f.Check] {
			t.Errorf("%+v is no finding", f)
		}
		seen[f.Check] = true
		if f.Verdict != OK && f.Next == "" {
			t.Errorf("%+v has no next step", f)
		}
		if f.Stops && f.Verdict != No {
			t.Errorf("%+v keeps mendfs from mounting, and is no no", f)
		}
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

// What to do where nothing could be tried goes by the reason.
func TestAskAgain(t *testing.T) {
	for want, s := range map[string]scratch{
		"as who may make files": {open: tried(unix.EACCES)},
		"remount":               {open: tried(fmt.Errorf("a file: %w", unix.EROFS))},
		"no way to tell":        {open: tried(unix.EOPNOTSUPP)},
		"nothing to do":         {open: tried(nil), fill: tried(nil)},
		"make room":             {open: tried(nil), fill: tried(unix.ENOSPC)},
		"backing directory":     {open: untried("a mendfs mount")},
	} {
		f := facts{scratch: s}
		if got := f.askAgain(); !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", s.open, got, want)
		}
	}
}
