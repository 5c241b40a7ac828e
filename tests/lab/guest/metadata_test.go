//go:build lab

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// TestUnreadableInode has the sector of an inode go bad, of a file which has a row in
// the ledger. Programs get the filesystem's errno, one event says so, the rest of the
// files is served, and the records of the file stay: its handle is as stale as if it
// were gone.
func TestUnreadableInode(t *testing.T) {
	besides(t, func(t *testing.T, fs filesystem, fact func(string, ...any)) {
		d := newDisk(t, fs)
		content := truth.Content(4 * page)
		manyFiles(t, d, content)
		d.poison(t, filepath.Join(d.at, victim), 9)
		m := harness.New(t, harness.Config{Backing: d.at})
		if _, err := os.ReadFile(m.Path(victim)); err != nil {
			t.Fatal(err)
		}
		at := d.inodeAt(t, filepath.Join(d.at, victim))
		m.Stop()
		run(t, "umount", d.at)
		d.mount(t)
		dropCaches(t) // ext4 reads inodes ahead
		back := d.poisonKept(t, at/sector)
		m.Start()
		told := len(m.Events())
		bare, mounted := unix.Stat(filepath.Join(d.at, victim), new(unix.Stat_t)), unix.Stat(m.Path(victim), new(unix.Stat_t))
		fact("inode in a bad sector, %s | stat | bare %s mounted %s", d.name, answer(bare), answer(mounted))
		if !errors.Is(mounted, unix.EIO) || answer(bare) != answer(mounted) {
			t.Errorf("stat: %v on the bare filesystem, %v through the mount", bare, mounted)
		}
		wantFile(t, m.Path("many/0"), content)
		news := slices.DeleteFunc(m.Events()[told:], func(e event.Event) bool { return e.Event == event.Detected })
		if len(news) != 1 || news[0].Event != event.MetadataError || news[0].Path != "many" || news[0].Next == "" {
			t.Errorf("events: %+v, want one of metadata", news)
		}
		if lost := m.Status().Lost; lost.Bytes != sector { // the mount, and status, look for files that are gone
			t.Errorf("the file's records: %+v", lost)
		}
		m.Stop()
		run(t, "umount", d.at)
		back()
		d.mount(t)
		m.Start()
		want := bytes.Clone(content)
		clear(want[9*sector : 10*sector])
		wantFile(t, m.Path(victim), want)
	})
}

// victim is a file whose inode is not read together with that of the first.
const victim = "many/50"

func manyFiles(t *testing.T, d *disk, content []byte) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(d.at, "many"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(d.at, "many", fmt.Sprint(i)), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
}

// TestUnreadableDirectory has the names of a directory go bad. XFS shuts down when one is
// added, since it has begun to change the disk by then: that is an outage. ext4
// refuses, and goes on.
func TestUnreadableDirectory(t *testing.T) {
	want := map[string][]event.Kind{"ext4": {event.MetadataError}, "xfs": {event.MetadataError, event.Outage}}
	besides(t, func(t *testing.T, fs filesystem, fact func(string, ...any)) {
		d := newDisk(t, fs)
		content := truth.Content(4 * page)
		d.fill(t, "other", content)
		longNames(t, filepath.Join(d.at, "long"))
		run(t, "umount", d.at)
		d.mount(t)
		m := harness.New(t, harness.Config{Backing: d.at})
		for _, s := range d.blocksOfNames(t, filepath.Join(d.at, "long")) {
			d.poisonDevice(t, s)
		}
		_, listed := os.ReadDir(m.Path("long"))
		created := opened(m.Path("long/"+strings.Repeat("m", nameLength)), os.O_CREATE|os.O_WRONLY)
		_, err := os.ReadFile(m.Path("other"))
		fact("names in bad sectors, %s | readdir %s | create %s | then a read of another file %s", d.name, answer(listed), answer(created), answer(err))
		if !errors.Is(listed, unix.EIO) || !errors.Is(created, unix.EIO) || (err != nil) != (d.name == "xfs") {
			t.Errorf("readdir: %v, create: %v, then another file: %v", listed, created, err)
		}
		var told []event.Kind
		for _, e := range m.Events() {
			if e.Event != event.Detected {
				told = append(told, e.Event)
			}
		}
		if !slices.Equal(told, want[d.name]) {
			t.Errorf("events: %v, want %v", told, want[d.name])
		}
		if r := harness.Mendfs(t, "umount", m.At); r.Exit != 0 {
			t.Errorf("mendfs umount: exit %d: %s", r.Exit, r.Stderr)
		}
		m.WaitExit()
	})
}

// nameLength is such that 20 names have room in a block.
const nameLength = 182

// longNames makes a directory of several blocks of names, the last of which has room.
func longNames(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 90 {
		if err := os.WriteFile(fmt.Sprintf("%s/%s%02d", dir, strings.Repeat("n", nameLength-2), i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// blocksOfNames is the first sector of each block in which a directory has its names.
func (d *disk) blocksOfNames(t *testing.T, dir string) (sectors []int64) {
	t.Helper()
	if d.name == "ext4" {
		for _, e := range extentsOf(t, dir) {
			for at := int64(0); at < e.file.Len; at += page {
				sectors = append(sectors, (e.device+at)/sector)
			}
		}
		return sectors[1:] // the first has the index
	}
	for line := range strings.Lines(run(t, "xfs_io", "-r", "-c", "bmap", dir)) {
		var n int
		var first, last, at, to int64
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%d: [%d..%d]: %d..%d", &n, &first, &last, &at, &to); err != nil || first >= 32<<30/sector {
			continue // the title; what lies behind 32 GiB is the index
		}
		for ; at < to; at += page / sector {
			sectors = append(sectors, at)
		}
	}
	if len(sectors) == 0 {
		t.Fatalf("%s has no blocks", dir)
	}
	return sectors
}

// inodeAt is where on the device the inode of a file lies.
func (d *disk) inodeAt(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	raw, err := os.Open(d.path())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	head := make([]byte, 64<<10)
	if _, err := io.ReadFull(raw, head); err != nil {
		t.Fatal(err)
	}
	ino := int64(st.Ino)
	if d.name == "ext4" { // Documentation/filesystems/ext4/super.rst, group_descr.rst
		super, little := head[1024:], binary.LittleEndian
		perGroup, size, descriptor := int64(little.Uint32(super[0x28:])), int64(little.Uint16(super[0x58:])), int64(little.Uint16(super[0xfe:]))
		group := head[page+(ino-1)/perGroup*descriptor:]
		return int64(little.Uint32(group[8:]))*page + (ino-1)%perGroup*size
	}
	big := binary.BigEndian // xfs_dsb in fs/xfs/libxfs/xfs_format.h
	agBlocks, size, perBlock, agBits := int64(big.Uint32(head[84:])), int64(big.Uint16(head[104:])), head[123], head[124]
	block := ino >> perBlock
	return (block>>agBits*agBlocks+block&(1<<agBits-1))*page + ino&(1<<perBlock-1)*size
}

// poisonKept is poisonDevice for a sector that somebody needs: back clears it, with the
// bytes it had.
func (d *disk) poisonKept(t *testing.T, s int64) (back func()) {
	t.Helper()
	raw, err := os.OpenFile(d.path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	data := aligned(sector)
	if _, err := raw.ReadAt(data, s*sector); err != nil {
		t.Fatal(err)
	}
	d.poisonDevice(t, s)
	return func() {
		if _, err := raw.WriteAt(data, s*sector); err != nil {
			t.Error(err)
		}
	}
}
