//go:build lab

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// newNVDIMM is a filesystem on one of QEMU's two NVDIMMs, whose media errors come
// by machine check, and which can't clear them: what was broken once stays so.
func newNVDIMM(t *testing.T, n int, fs filesystem) *disk {
	t.Helper()
	name, err := os.ReadFile(nvdimm(n) + ".device")
	if err != nil {
		t.Fatalf("the guest has no such NVDIMM: %v", err)
	}
	d := &disk{name: fs.name, device: strings.TrimSpace(string(name)), at: harness.Dir(t)}
	run(t, fs.mkfs[0], append(fs.mkfs[1:len(fs.mkfs):len(fs.mkfs)], d.path())...)
	d.mount(t)
	t.Cleanup(func() { run(t, "umount", d.at) })
	return d
}

// nvdimm is a link to the kernel's directory of the nth NVDIMM.
func nvdimm(n int) string { return fmt.Sprint("/run/nvdimm", n) }

// breakSector has the host let a sector of a file go bad. It becomes listed.
func (d *disk) breakSector(t *testing.T, n int, path string, s int64) {
	t.Helper()
	text, err := os.ReadFile(nvdimm(n) + "/resource")
	if err != nil {
		t.Fatal(err)
	}
	begin, err := strconv.ParseInt(strings.TrimSpace(string(text)), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	e := extentsOf(t, path)[0]
	fmt.Printf("lab: machine check at %#x\n", begin+e.device-e.file.Off+s*sector)
	for end := time.Now().Add(time.Minute); !slices.Contains(d.bad(t, path), s); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("sector %d of %s is not listed after a machine check, but %v", s, path, d.bad(t, path))
		}
	}
}

// TestFreedMineShutsXFSDown is what happens without mendfs: a bad block that can't be
// cleared is freed, given out again, and ends the filesystem.
func TestFreedMineShutsXFSDown(t *testing.T) {
	d := newNVDIMM(t, 1, filesystems[1])
	d.fill(t, "filler", make([]byte, 60<<20)) // the bad block is to lie where ext4 has no metadata: the next test makes one here
	path := d.fill(t, "file", truth.Content(4*page))
	d.breakSector(t, 1, path, 11)
	if err := os.Truncate(path, 0); err != nil { // unlink would free it too, but some time later
		t.Fatal(err)
	}
	unix.Sync()
	if err := useUp(d.at); !errors.Is(err, unix.EIO) {
		t.Errorf("the filesystem was filled: %v", err)
	}
	if _, err := os.ReadDir(d.at); !errors.Is(err, unix.EIO) {
		t.Errorf("the filesystem goes on: %v", err)
	}
}

// TestNothingClears has a medium that refuses to be cleared. Writes of the bad page
// get EIO, its readable bytes are kept and served, and on XFS nothing frees the block.
func TestNothingClears(t *testing.T) {
	for n, fs := range []filesystem{filesystems[1], filesystems[0]} { // XFS on an NVDIMM that has no bad sector yet
		t.Run(fs.name, func(t *testing.T) { nothingClears(t, newNVDIMM(t, n, fs), n) })
	}
}

func nothingClears(t *testing.T, d *disk, n int) {
	content := truth.Content(4 * page)
	path := d.fill(t, "file", content)
	d.breakSector(t, n, path, 11)
	m := harness.New(t, harness.Config{Backing: d.at})
	f, err := os.OpenFile(m.Path("file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(m.Path("file"))
	if err != nil {
		t.Fatal(err)
	}
	lost := checkLoss(t, m, content, before)
	for name, write := range map[string]func() error{
		"write of a part of the page": func() error { _, err := f.WriteAt([]byte("new"), page); return err },
		"write of the page":           func() error { _, err := f.WriteAt(make([]byte, page), page); return err },
	} {
		if err := write(); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, want EIO", name, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	dropCaches(t)
	wantFile(t, m.Path("file"), before)
	m.Restart()
	wantFile(t, m.Path("file"), before)
	if !slices.ContainsFunc(m.Events(), func(e event.Event) bool { return e.Event == event.RepairFailed && e.Next != "" }) {
		t.Errorf("no event tells of the repair that failed: %+v", m.Events())
	}
	freeing(t, d, m, m.Path("file"), before)
	if err := useUp(d.at); !errors.Is(err, unix.ENOSPC) && d.name != "ext4" { // ext4 gets EIO there, and goes on
		t.Errorf("the filesystem was filled: %v", err)
	}
	if _, err := os.ReadDir(d.at); err != nil {
		t.Errorf("the filesystem does not go on: %v", err)
	}
	t.Logf("lost: %v of %s", lost, d.name)
}

// checkLoss finds what of the content was lost: the bad sector, or its page where the
// kernel has taken the page out of its own mapping, so that its sectors can't be read one
// by one. The event says why.
func checkLoss(t *testing.T, m *harness.Mount, content, got []byte) ranges.Range {
	t.Helper()
	rows := m.Lost("file")
	if len(rows) != 1 || rows[0].Range != (ranges.Range{Off: 11 * sector, Len: sector}) && rows[0].Range != ranges.Page(page) {
		t.Fatalf("lost is %+v", rows)
	}
	lost := rows[0].Range
	want := bytes.Clone(content)
	clear(want[lost.Off:lost.End()])
	if !bytes.Equal(got, want) {
		t.Errorf("wrong bytes at %d, lost is %v", firstDifference(got, want), lost)
	}
	for _, e := range m.Events() {
		if e.Event == event.Lost && lost.Len == page && e.Why == "" {
			t.Errorf("the event does not say why the whole page is lost: %+v", e)
		}
	}
	return lost
}

// freeing tries all ways to free the bad block. On XFS none may succeed.
func freeing(t *testing.T, d *disk, m *harness.Mount, path string, content []byte) {
	t.Helper()
	other := m.Path("other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d.name == "ext4" {
		if err := os.Remove(path); err != nil {
			t.Errorf("unlink: %v", err)
		}
		return
	}
	for _, f := range freeings {
		if err := f.free(path, other); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, want EIO", f.name, err)
		}
	}
	dropCaches(t)
	wantFile(t, path, content)
}

// useUp writes files until the filesystem is full, or fails: first such as fit into
// what a small file has left.
func useUp(dir string) error {
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("full", i)))
		if err != nil {
			return err
		}
		size := 8 << 20
		if i < 100 {
			size = 4 * page
		}
		_, err = f.Write(make([]byte, size))
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}
