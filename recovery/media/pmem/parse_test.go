package pmem

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

func TestParseBadblocks(t *testing.T) {
	full := strings.Repeat("1000000000000000000 512\n", 200)[:maxText]
	for _, c := range []struct {
		name, text string
		want       string // "": an error
		complete   bool
	}{
		{"nothing", "", "{}", true},
		{"an empty line", "\n", "{}", true},
		{"one", "267 1\n", "{[136704 +512)}", true},
		{"neighbours", "8 8\n16 1\n", "{[4096 +4608)}", true},
		{"two", "0 1\n100 2\n", "{[0 +512) [51200 +1024)}", true},
		{"no number", "x 1\n", "", true},
		{"three numbers", "1 2 3\n", "", true},
		{"one number", "1\n", "", true},
		{"negative", "-1 1\n", "", true},
		{"more than can be counted", "36028797018963968 1\n", "", true},
		{"a long text that is out of range", full, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := ParseBadblocks(c.text)
			if c.want == "" {
				if err == nil {
					t.Errorf("taken for %v", &list.Bad)
				}
				return
			}
			if err != nil || list.Bad.String() != c.want || list.Complete != c.complete {
				t.Errorf("%v, complete %v, %v; want %s, %v", list, list.Complete, err, c.want, c.complete)
			}
		})
	}
}

// A text that fills its page is cut somewhere: what is believed of it is listed
// in truth.
func TestParseBadblocksThatWereCut(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var text strings.Builder
		truth := ranges.Of()
		for sector := int64(1000); text.Len() < maxText+100; {
			sector += 20 + random.Int64N(1<<20)
			n := 1 + random.Int64N(19)
			fmt.Fprintf(&text, "%d %d\n", sector, n)
			truth.Add(ranges.Range{Off: sector * 512, Len: n * 512})
		}
		cut := text.String()[:maxText-1]
		list, err := ParseBadblocks(cut)
		if err != nil || list.Complete || list.Bad.Empty() {
			t.Fatalf("%v, complete %v, of %q", err, list.Complete, cut)
		}
		for r := range list.Bad.All() {
			if !truth.Contains(r) {
				t.Fatalf("%v is not listed; the end was %q", r, cut[len(cut)-40:])
			}
		}
	}
}

// The kernel has room for 512 entries: with that many there may be more.
func TestParseBadblocksOfAFullTable(t *testing.T) {
	var text strings.Builder
	for i := range maxEntries {
		fmt.Fprintf(&text, "%d 1\n", i%10*2)
	}
	if text.Len() >= maxText-longLine {
		t.Fatal("the text is too long to show it")
	}
	if list, err := ParseBadblocks(text.String()); err != nil || list.Complete {
		t.Errorf("complete %v, %v", list.Complete, err)
	}
}

func FuzzParseBadblocks(f *testing.F) {
	for _, seed := range []string{"", "\n", "267 1\n", "0 1\n8 512\n", "1", "18014398509481983 4294967295\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParseBadblocks(text)
		if err != nil {
			return
		}
		for r := range list.Bad.All() {
			if r.Off < 0 || r.End() < r.Off || r.Off%512 != 0 || r.Len%512 != 0 {
				t.Errorf("%q has %v", text, r)
			}
		}
	})
}

func TestParseTable(t *testing.T) {
	for _, c := range []struct{ name, table, want string }{
		{"one", "0 1048576 linear 259:0 2048\n", "[0 +536870912) 259:0 1048576"},
		{"two", "0 8 linear 259:0 0\n8 16 linear 259:5 4096\n", "[0 +4096) 259:0 0; [4096 +8192) 259:5 2097152"},
		{"encrypted", "0 8 crypt aes-xts-plain64 00 0 259:0 0\n", "not pmem"},
		{"striped", "0 8 striped 2 16 259:0 0 259:1 0\n", "not pmem"},
		{"empty", "", "not pmem"},
		{"a gap", "0 8 linear 259:0 0\n16 8 linear 259:0 8\n", "bad"},
		{"no length", "0 0 linear 259:0 0\n", "bad"},
		{"a path", "0 8 linear /dev/pmem0 0\n", "bad"},
		{"too short", "0 8\n", "bad"},
		{"no place", "0 8 linear 259:0\n", "bad"},
		{"overflow", "0 18446744073709551615 linear 259:0 0\n", "bad"},
	} {
		t.Run(c.name, func(t *testing.T) {
			targets, err := ParseTable(c.table)
			var got []string
			for _, g := range targets {
				got = append(got, fmt.Sprintf("%v %d:%d %d", g.Range, unix.Major(g.Dev), unix.Minor(g.Dev), g.Start))
			}
			text := strings.Join(got, "; ")
			if errors.Is(err, ErrNotPmem) {
				text = "not pmem"
			} else if err != nil {
				text = "bad"
			}
			if text != c.want {
				t.Errorf("%s, %v; want %s", text, err, c.want)
			}
		})
	}
}

func FuzzParseTable(f *testing.F) {
	for _, seed := range []string{"", "0 8 linear 259:0 0\n", "0 8 linear 259:0 0\n8 16 linear 259:5 4096\n", "0 8 crypt x\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, table string) {
		targets, err := ParseTable(table)
		if err != nil {
			return
		}
		next := int64(0)
		for _, target := range targets {
			if target.Range.Off != next || target.Range.Len <= 0 || target.Start < 0 || target.Start+target.Range.Len < 0 {
				t.Errorf("%q has %+v", table, target)
			}
			next = target.Range.End()
		}
	})
}

func TestTableOfTheIoctl(t *testing.T) {
	// Two targets as the kernel lays them out: spec, arguments with a zero, padding.
	data := make([]byte, 256)
	put := func(at int, start, length uint64, next uint32, args string) {
		for i := range 8 {
			data[at+i], data[at+8+i] = byte(start>>(8*i)), byte(length>>(8*i))
		}
		for i := range 4 {
			data[at+20+i] = byte(next >> (8 * i))
		}
		copy(data[at+24:], "linear")
		copy(data[at+40:], args)
	}
	put(0, 0, 8, 64, "259:0 2048")
	put(64, 8, 16, 128, "259:1 0")
	text, err := tableText(data, 2)
	if want := "0 8 linear 259:0 2048\n8 16 linear 259:1 0\n"; err != nil || text != want {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
	if _, err := tableText(data[:80], 2); err == nil {
		t.Error("a table that ends early is taken")
	}
}

func FuzzTableOfTheIoctl(f *testing.F) {
	f.Add(make([]byte, 80), 2)
	f.Fuzz(func(_ *testing.T, data []byte, count int) {
		_, _ = tableText(data, min(count, 1000)) // must not panic, whatever the kernel says
	})
}

// fakeSys is a /sys with two pmem disks, a partition, a BTT, an ordinary disk
// and a device of the device mapper.
func fakeSys(t *testing.T) Kernel {
	t.Helper()
	sys := t.TempDir()
	put := func(path, text string) {
		path = filepath.Join(sys, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(dev, to string) {
		path := filepath.Join(sys, "dev/block", dev)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(filepath.Join(sys, to), path)); err != nil {
			t.Fatal(err)
		}
	}
	put("block/pmem0/size", "2048\n")
	put("block/pmem0/badblocks", "8 1\n1030 2\n")
	put("block/pmem0/queue/logical_block_size", "512\n")
	put("block/pmem0/pmem0p1/size", "1000\n")
	put("block/pmem0/pmem0p1/start", "1024\n")
	put("block/pmem0/pmem0p1/partition", "1\n")
	put("block/pmem1.1/size", "4096\n")
	put("block/pmem1.1/badblocks", "16 1\n")
	put("block/pmem2s/size", "2048\n")
	put("block/sda/size", "2048\n")
	put("block/dm-0/size", "2048\n")
	put("block/dm-0/dm/name", "volume\n")
	for dev, to := range map[string]string{
		"259:0": "block/pmem0", "259:1": "block/pmem0/pmem0p1", "259:2": "block/pmem1.1", "259:3": "block/pmem2s", "8:0": "block/sda", "253:0": "block/dm-0",
	} {
		link(dev, to)
	}
	return Kernel{Sys: sys, Dev: filepath.Join(sys, "dev")}
}

func TestWhereVolumesLie(t *testing.T) {
	k := fakeSys(t)
	for _, c := range []struct {
		name         string
		major, minor uint32
		table        string
		bad          string // in bytes of the volume; "": not pmem
		at           int64
		disk         string // and sector of at
		sector       int64
	}{
		{"a disk", 259, 0, "", "{[4096 +512) [527360 +1024)}", 4096, "pmem0", 8},
		{"a partition", 259, 1, "", "{[3072 +1024)}", 3072, "pmem0", 1030},
		{"the second namespace of a region", 259, 2, "", "{[8192 +512)}", 8192, "pmem1.1", 16},
		{"a BTT", 259, 3, "", "", 0, "", 0},
		{"another disk", 8, 0, "", "", 0, "", 0},
		{"no block device", 0, 40, "", "", 0, "", 0},
		{"a device that is hidden", 259, 9, "", "", 0, "", 0},
		{"two linear pieces", 253, 0, "0 100 linear 259:2 10\n100 900 linear 259:1 0\n", "{[3072 +512) [54272 +1024)}", 54272, "pmem0", 1030},
		{"an encrypted volume", 253, 0, "0 1000 crypt 259:0\n", "", 0, "", 0},
		{"linear on another disk", 253, 0, "0 1000 linear 8:0 0\n", "", 0, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := k
			k.Table = func(uint64) (string, error) { return c.table, nil }
			v, err := k.Open(unix.Mkdev(c.major, c.minor))
			if c.bad == "" {
				want := ErrNotPmem
				if c.minor == 9 {
					want = ErrHidden
				}
				if !errors.Is(err, want) {
					t.Errorf("%v, %v", v, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			list, err := v.Bad()
			if err != nil || list.Bad.String() != c.bad || !list.Complete {
				t.Errorf("bad: %v, %v; want %s", list, err, c.bad)
			}
			if disk, sector := v.Sector(c.at); disk != c.disk || sector != c.sector {
				t.Errorf("%d is sector %d of %q, want %d of %q", c.at, sector, disk, c.sector, c.disk)
			}
			if err := v.CanReadSectors(); !errors.Is(err, ErrNoRaw) {
				t.Errorf("a device that is not there can be read: %v", err)
			}
		})
	}
}

// LVM may move a volume while it is mounted.
func TestTableThatChanges(t *testing.T) {
	k := fakeSys(t)
	table := "0 100 linear 259:2 10\n"
	k.Table = func(uint64) (string, error) { return table, nil }
	v, err := k.Open(unix.Mkdev(253, 0))
	if err != nil {
		t.Fatal(err)
	}
	table = "0 100 linear 259:0 0\n"
	list, err := v.Bad()
	if err != nil || list.Bad.String() != "{[4096 +512)}" {
		t.Errorf("%v, %v", list, err)
	}
	if disks := v.Disks(); len(disks) != 1 || disks[0] != "pmem0" {
		t.Errorf("disks %v", disks)
	}
	if err := v.AllowZero(); !errors.Is(err, ErrNoRaw) {
		t.Errorf("a volume that may move can be written: %v", err)
	}
}

func TestListThatCannotBeRead(t *testing.T) {
	k := fakeSys(t)
	v, err := k.Open(unix.Mkdev(259, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func() error{
		func() error {
			return os.WriteFile(filepath.Join(k.Sys, "block/pmem0/badblocks"), []byte("nonsense\n"), 0o644)
		},
		func() error { return os.Remove(filepath.Join(k.Sys, "block/pmem0/badblocks")) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if list, err := v.Bad(); err == nil {
			t.Errorf("%v", list)
		}
	}
}

// What is mounted over the list is not believed: it may well be empty.
func TestListOfSomebodyElse(t *testing.T) {
	for _, path := range []string{"/dev/null", filepath.Join(t.TempDir(), "badblocks")} {
		if path != "/dev/null" {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if text, err := (Kernel{}).readList(path); err == nil {
			t.Errorf("%s is taken for the kernel's: %q", path, text)
		}
	}
	if _, err := (Kernel{}).readList("/sys/kernel/uevent_seqnum"); err != nil {
		t.Errorf("a file of sysfs: %v", err)
	}
}
