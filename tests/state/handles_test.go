package state

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

const (
	saysNoHandles = "has no file handles that last"
	saysNoName    = "has no name that lasts"
)

// Without handles, files are known by inode number and birth time: their records go
// with them through renames, to their other names, and over a kill and a new mount.
func TestWithoutHandles(t *testing.T) {
	for name, flags := range map[string][]string{
		"none at all":              {"-no-handles"},
		"such as last for a while": nil,
	} {
		t.Run(name, func(t *testing.T) {
			bad := harness.NewBadMedia(t, flags...)
			data := bad.File("f", 1, 3*page)
			m := harness.New(t, harness.Config{Backing: bad.At})
			for _, words := range []string{saysNoHandles, saysNoName} {
				if !strings.Contains(said(t, m), words) {
					t.Errorf("it is not said that the filesystem %s: %s", words, said(t, m))
				}
			}
			lost := rng{Off: page, Len: 64}
			bad.Bad("f", lost)
			m.Check("f", data, lost)
			if err := os.Rename(m.Path("f"), m.Path("g")); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(m.Path("g"), m.Path("h")); err != nil {
				t.Fatal(err)
			}
			harness.WriteFile(t, m.Path("f"), data)
			m.Check("f", data) // another file
			m.Check("g", data, lost)
			m.Kill()
			m.Start()
			m.Check("f", data)
			m.Check("h", data, lost)
			data = m.Overwrite("h", data, []byte("part of a page"), page+100)
			m.Check("g", data, lost)
			if left := bad.Left("f"); !left.Empty() {
				t.Errorf("still bad: %v", left)
			}
		})
	}
}

// tmpfs has handles and birth times, and is no worse than a disk.
func TestOnTmpfs(t *testing.T) {
	v := newVolume(t, "size=8m")
	m := harness.New(t, harness.Config{Backing: mkdir(t, v.at, "b"), Flags: []string{"--simulate", "dax"}})
	for _, words := range []string{saysNoHandles, saysNoName, "no birth times"} {
		if strings.Contains(said(t, m), words) {
			t.Errorf("it says: %s", said(t, m))
		}
	}
	data := m.File("f", 1, 3*page)
	lost := rng{Off: page, Len: sector}
	m.Inject("f", rng{Off: page, Len: 64})
	m.Check("f", data, lost)
	m.Kill()
	if err := os.Rename(m.Below("f"), m.Below("g")); err != nil { // nobody sees it
		t.Fatal(err)
	}
	m.Start()
	m.Check("g", data, lost)
	if err := os.Remove(m.Path("g")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record of a removed file going to the history", func() bool {
		r := harness.Mendfs(t, "lost", m.At)
		return r.Exit == exitOK
	})
}

// A directory that came with the filesystem's image may have no birth time, where the
// filesystem keeps them all the same.
func TestBirthTimesOfAnImage(t *testing.T) {
	harness.Need(t, harness.Program("debugfs"))
	d := harness.NewDisk(t, "ext4", 16)
	mkdir(t, d.At, "b")
	d.Unmount()
	for _, field := range []string{"crtime", "crtime_extra"} {
		if r := harness.Run(t, "debugfs", "-w", "-R", "set_inode_field /b "+field+" 0", d.Image); r.Exit != 0 {
			t.Fatal(r.Stderr)
		}
	}
	d.Mount()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, d.At+"/b", 0, unix.STATX_BTIME, &st); err != nil || st.Btime.Sec != 0 {
		t.Fatalf("born %d, %v", st.Btime.Sec, err)
	}
	m := harness.New(t, harness.Config{Backing: d.At + "/b"})
	if strings.Contains(said(t, m), "no birth times") {
		t.Errorf("it says: %s", said(t, m))
	}
}

// overlayfs has no handles unless it is asked for.
func TestOnOverlayfs(t *testing.T) {
	v := newVolume(t, "size=8m")
	lower, upper, work, at := mkdir(t, v.at, "l"), mkdir(t, v.at, "u"), mkdir(t, v.at, "w"), mkdir(t, v.at, "o")
	harness.WriteFile(t, lower+"/f", harness.Pattern(1, 3*page))
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	harness.Need(t, func() error { return unix.Mount("overlay", at, "overlay", 0, options) })
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	m := harness.New(t, harness.Config{Backing: at, Flags: []string{"--simulate", "dax"}})
	if !strings.Contains(said(t, m), saysNoHandles) {
		t.Errorf("it says: %s", said(t, m))
	}
	data := m.Overwrite("f", harness.Pattern(1, 3*page), []byte("copied up"), 0)
	m.Inject("f", rng{Off: page, Len: 64})
	m.Check("f", data, rng{Off: page, Len: sector})
	m.Restart()
	m.Check("f", data, rng{Off: page, Len: sector})
	data = m.Overwrite("f", data, harness.Pattern(2, page), page)
	m.Check("f", data)
}
