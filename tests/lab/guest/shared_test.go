//go:build lab

package guest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// clone makes a file of the same blocks.
func clone(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err != nil {
		t.Fatalf("cloning: %v", err)
	}
	unix.Sync()
}

// TestSharedBlock overwrites a bad page that two files share. The kernel fails that
// through either file, since copy on write reads the page first; mendfs clears it on the
// device, for both, and names the other. XFS says by its map of owners who that is;
// without one all files are asked.
func TestSharedBlock(t *testing.T) {
	for owners, fs := range map[string]filesystem{"rmapbt=1": withOwners, "rmapbt=0": filesystems[2]} {
		t.Run(owners, func(t *testing.T) { sharedBlock(t, newDisk(t, fs)) })
	}
}

func sharedBlock(t *testing.T, d *disk) {
	content := truth.Content(4 * page)
	path := d.fill(t, "one", content)
	clone(t, path, filepath.Join(d.at, "two"))
	d.poison(t, path, 11)
	bare, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if _, err := bare.WriteAt(make([]byte, page), page); err == nil {
		t.Fatal("without mendfs the write succeeds: nothing is shown here")
	}

	m := harness.New(t, harness.Config{Backing: d.at})
	f, err := os.OpenFile(m.Path("one"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("new"), page); err != nil {
		t.Fatalf("a write of a part of the shared bad page: %v", err)
	}
	if left := d.listed(t); len(left) > 0 {
		t.Errorf("still listed: %v", left)
	}
	bad := ranges.Range{Off: 11 * sector, Len: sector}
	lost := bytes.Clone(content)
	clear(lost[bad.Off:bad.End()])
	wantFile(t, m.Path("two"), lost)
	checkSharer(t, m, bad)
	copy(lost[page:], "new")
	wantFile(t, m.Path("one"), lost)
	checkEvents(t, m)
}

// checkSharer checks that the file two has the lost range on record, by the sector,
// and that the repair of the file one has named it.
func checkSharer(t *testing.T, m *harness.Mount, lost ranges.Range) {
	t.Helper()
	if rows := m.Lost("two"); len(rows) != 1 || rows[0].Range != lost || rows[0].Granularity != sector {
		t.Errorf("on record for the other file: %+v", rows)
	}
	named := []string{fmt.Sprintf("two %v", lost)}
	if !slices.ContainsFunc(m.Events(), func(e event.Event) bool {
		return e.Event == event.Reinitialized && e.Path == "one" && slices.Equal(e.Sharers, named)
	}) {
		t.Errorf("no event names the other file: %+v", m.Events())
	}
}

func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v, first difference at %d", path, len(got), err, firstDifference(got, want))
	}
}

// TestCopiesAreNoClones copies a file with poison through the mount: the copy has blocks
// of its own and no poison, and its zeros are on record.
func TestCopiesAreNoClones(t *testing.T) {
	onEach(t, func(t *testing.T, d *disk) {
		content := truth.Content(16 * page)
		path := d.fill(t, "file", content)
		d.poison(t, path, 11, 40)
		m := harness.New(t, harness.Config{Backing: d.at})
		in, err := os.Open(m.Path("file"))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if _, err := copyFileRangeTo(in, m.Path("copy")); err != nil {
			t.Fatal(err)
		}
		clear(content[11*sector : 12*sector])
		clear(content[40*sector : 41*sector])
		wantFile(t, m.Path("copy"), content)
		unix.Sync()
		if bad := d.bad(t, m.Below("copy")); len(bad) > 0 {
			t.Errorf("the copy has bad sectors %v", bad)
		}
		for _, e := range extentsOf(t, m.Below("copy")) {
			if e.shared {
				t.Errorf("the copy shares %v with its source", e.file)
			}
		}
		if rows := m.Lost("copy"); len(rows) != 2 || rows[0].Cause != "copied" {
			t.Errorf("on record for the copy: %+v", rows)
		}
		if bad := d.bad(t, path); !slices.Equal(bad, []int64{11, 40}) {
			t.Errorf("bad sectors of the source are %v after a copy", bad)
		}
		checkEvents(t, m)
	})
}
