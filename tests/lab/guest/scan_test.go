//go:build lab

package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/tests/harness"
)

// scanned is what mendfs scan says of a directory, as "use path [off +len) found".
func scanned(t *testing.T, dir string, flags ...string) []string {
	t.Helper()
	r := harness.Mendfs(t, append(append([]string{"scan", "--json"}, flags...), dir)...)
	var answer struct{ Scan []control.Place }
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil {
		t.Fatalf("mendfs scan: exit %d, %v: %s%s", r.Exit, err, r.Stdout, r.Stderr)
	}
	var out []string
	for _, p := range answer.Scan {
		if p.Sector == nil || p.Device == "" {
			t.Errorf("%s has no sector: %+v", p.Path, p)
		}
		out = append(out, fmt.Sprintf("%s %s %v %s", p.Use, p.Path, p.Range, strings.Join(p.Found, "+")))
	}
	slices.Sort(out)
	return out
}

func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// twoBadFiles makes two files of the same content with bad sectors.
func twoBadFiles(t *testing.T, d *disk) (content []byte) {
	t.Helper()
	content = harness.Pattern(1, 16*page)
	if err := os.Mkdir(filepath.Join(d.at, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.poison(t, d.fill(t, "one", content), 9, 10)
	d.poison(t, d.fill(t, "dir/two", content), 127)
	return content
}

// The kernel's list becomes files and offsets, and nothing is read for it.
func TestScanFindsFiles(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		twoBadFiles(t, d)
		want := []string{"file one [4608 +1024) badblocks", "file dir/two [65024 +512) badblocks"}
		wantLines(t, "the directory", scanned(t, d.at), want...)
		m := harness.New(t, harness.Config{Backing: d.at})
		wantLines(t, "the mount", scanned(t, m.At), want...)
		if rows := m.Lost("one"); len(rows) > 0 {
			t.Errorf("it was read: %+v", rows)
		}
		if got := d.listed(t); len(got) != 3 {
			t.Errorf("listed afterwards: %v", got)
		}
	})
}

// Free space and the filesystem's own data are told apart, where the filesystem
// knows: XFS without rmapbt only knows what is free.
func TestScanTellsUsesApart(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		want := "metadata  [0 +512) badblocks"
		if d.name == "xfs+reflink" {
			want = "unknown  [0 +512) badblocks"
		}
		const free = 380 << 20
		d.poisonDevice(t, free/sector)
		d.poisonDevice(t, 0)
		wantLines(t, "scan", scanned(t, d.at), want, fmt.Sprintf("%s  [%d +512) badblocks", d.useOfFree(t), free))
	})
}

// --read meets what is listed, and changes nothing on a bare directory.
func TestScanReads(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		twoBadFiles(t, d)
		wantLines(t, "with --read", scanned(t, d.at, "--read", "--force"),
			"file one [4608 +1024) badblocks+read", "file dir/two [65024 +512) badblocks+read")
		if got := d.listed(t); len(got) != 3 {
			t.Errorf("listed afterwards: %v", got)
		}
	})
}

// --repair eager clears what is listed, and keeps what can be had.
func TestEagerClearsTheList(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		content := twoBadFiles(t, d)
		m := harness.New(t, harness.Config{Backing: d.at, Flags: []string{"--repair", "eager"}})
		for end := time.Now().Add(2 * time.Minute); len(d.listed(t)) > 0; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("listed after two minutes: %v", d.listed(t))
			}
		}
		m.Check("one", content, harness.Range{Off: 9 * sector, Len: 2 * sector})
		m.Check("dir/two", content, harness.Range{Off: 127 * sector, Len: sector})
	})
}
