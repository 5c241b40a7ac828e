package early

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

func TestScanOfAMount(t *testing.T) {
	m := harness.Simulated(t, "dax")
	m.Sh("mkdir -p d/e")
	m.File("d/e/f", 1, 8*page)
	m.File("g", 2, 8*page)
	if places, exit := scan(t, m.At); len(places) > 0 || exit != 0 {
		t.Errorf("without poison: %q, exit %d", places, exit)
	}
	m.Inject("d/e/f", sectorAt(page))
	m.Inject("g", sectorAt(4*page))
	m.Sh("mv d/e/f d/renamed")
	places, exit := scan(t, m.At)
	wants(t, "all", places, "file d/renamed [4096 +512)", "file g [16384 +512)")
	if exit != 4 {
		t.Errorf("exit %d, want 4", exit)
	}
	places, _ = scan(t, m.Path("d"))
	wants(t, "a directory", places, "file d/renamed [4096 +512)")
	places, _ = scan(t, m.Path("g"))
	wants(t, "a file", places, "file g [16384 +512)")
	if got := told(m, event.Lost); len(got) > 0 {
		t.Errorf("scanning has read: %q", got)
	}
	r := harness.Mendfs(t, "scan", m.At)
	for _, want := range []string{"RANGE", "d/renamed"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("no %q in %q", want, r.Stdout)
		}
	}
	if !strings.Contains(r.Stderr, "next, file: overwrite it") {
		t.Errorf("it does not say what to do: %q", r.Stderr)
	}
}

// Through a mount, reading all is what finds latent poison, and records it.
func TestScanReadsAMount(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 600*page+10)
	m.Sh("truncate -s 100M sparse; cat f > cached; cat cached > /dev/null")
	m.InjectLatent("f", sectorAt(page), sectorAt(599*page))
	m.Inject("cached", sectorAt(5*page))
	places, exit := scan(t, "--read", m.At)
	wants(t, "found", places, "file f [4096 +512)", "file f [2453504 +512)", "file cached [20480 +512)")
	if exit != 4 {
		t.Errorf("exit %d, want 4", exit)
	}
	m.Check("f", data, sectorAt(page), sectorAt(599*page))
}

// A directory that is not mounted is read and left as it is.
func TestScanReadsADirectory(t *testing.T) {
	b := harness.NewBadMedia(t)
	b.File("f", 1, 300*page+1)
	b.File("sound", 2, 10*page)
	b.Bad("f", rng{Off: 3*page + 64, Len: 64}, rng{Off: 10 * page, Len: 2*page + 1}, rng{Off: 300 * page, Len: 1})
	left := b.Left("f").String()
	places, exit := scan(t, "--read", b.At)
	wants(t, "found", places, "file f [12288 +4096)", "file f [40960 +12288)", "file f [1228800 +1)")
	if exit != 4 {
		t.Errorf("exit %d, want 4", exit)
	}
	if now := b.Left("f").String(); now != left {
		t.Errorf("what is bad has changed: %s, was %s", now, left)
	}
	places, exit = scan(t, "--read", b.At+"/sound")
	wants(t, "a sound file", places)
	if exit != 0 {
		t.Errorf("exit %d for a sound file", exit)
	}
	places, _ = scan(t, "--read", b.At+"/f")
	wants(t, "a file", places, "file . [12288 +4096)", "file . [40960 +12288)", "file . [1228800 +1)")
}

// A device that is gone is not a device full of poison.
func TestScanOfAnOutage(t *testing.T) {
	b := harness.NewBadMedia(t)
	b.File("f", 1, 8000*page)
	b.Outage(true)
	defer b.Outage(false)
	r := harness.Mendfs(t, "scan", "--read", b.At)
	if r.Exit&8 == 0 {
		t.Errorf("exit %d: %s", r.Exit, r.Stderr)
	}
}

func TestScanRefusals(t *testing.T) {
	harness.Need(t, harness.FUSE)
	dir := harness.Dir(t)
	harness.WriteFile(t, dir+"/f", harness.Pattern(1, page))
	cursor := dir + "/cursor"
	harness.WriteFile(t, cursor, []byte(`{"version":2,"target":"/elsewhere","fs":"x","offset":7}`))
	before, err := os.ReadFile(cursor)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		exit int
		says string
		args []string
	}{
		{8, "nobody keeps a list", []string{dir}},
		{16, "does not exist", []string{dir + "/nowhere"}},
		{16, "go with --read", []string{"--cursor-file", cursor, dir}},
		{16, "go with --read", []string{"--force", dir}},
		{16, "is empty", []string{"--read", "--cursor-file", "", dir}},
		{16, "of a scan of /elsewhere", []string{"--read", "--cursor-file", cursor, dir}},
		{8, "give a file that can be written", []string{"--read", "--cursor-file", dir + "/no/cursor", dir}},
		{16, "no target", nil},
	} {
		r := harness.Mendfs(t, append([]string{"scan"}, c.args...)...)
		if r.Exit != c.exit || !strings.Contains(r.Stderr, c.says) {
			t.Errorf("scan %q: exit %d, want %d and %q: %s", c.args, r.Exit, c.exit, c.says, r.Stderr)
		}
	}
	if after, err := os.ReadFile(cursor); err != nil || !bytes.Equal(after, before) {
		t.Errorf("another scan's cursor was changed: %q, %v", after, err)
	}
}
