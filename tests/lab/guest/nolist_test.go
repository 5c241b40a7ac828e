//go:build lab

package guest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// TestNoList mounts where the kernel's list of media errors can't be had. What is lost by
// that is the unit of loss, or nothing: reads and repairs go on. Mount and doctor say so.
func TestNoList(t *testing.T) {
	d := newDisk(t, filesystems[0])
	entry, err := filepath.EvalSymlinks("/sys/block/" + d.device)
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(harness.Dir(t), "badblocks")
	if err := os.WriteFile(secret, nil, 0); err != nil {
		t.Fatal(err)
	}
	const (
		byPage, hidden  = "poison costs whole pages", "can't be seen in /sys"
		noList, covered = "the list of media errors can't be had", "take away what is mounted over it"
	)
	for _, c := range []struct {
		name, over, with string
		unit             int64
		mount            []string // what it says
		check, doctor    string   // of doctor: which finding, and what is in it
	}{
		{"no /sys", "/sys", "", page, []string{byPage, hidden}, "device", hidden},
		{"no entry in /sys", entry, "", page, []string{byPage, hidden}, "device", hidden},
		{"a list that is hidden", entry + "/badblocks", secret, sector, []string{noList, covered}, "badblocks", covered},
	} {
		t.Run(c.name, func(t *testing.T) {
			content := truth.Content(8 * page)
			d.poison(t, d.fill(t, "file", content), 9, 27)
			cover(t, c.over, c.with)
			if f := diagnose(t, d.at)[c.check]; f.Verdict != "limited" || !strings.Contains(f.Found, c.doctor) {
				t.Errorf("doctor: %+v", f)
			}
			m := harness.New(t, harness.Config{Backing: d.at})
			want := bytes.Clone(content)
			for _, s := range []int64{9, 27} {
				lost := (ranges.Range{Off: s * sector, Len: 1}).Widen(c.unit)
				clear(want[lost.Off:lost.End()])
			}
			wantFile(t, m.Path("file"), want)
			f, err := os.OpenFile(m.Path("file"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, part := f.WriteAt([]byte("new"), page)
			_, whole := f.WriteAt(bytes.Repeat([]byte("x"), page), 3*page)
			if err := errors.Join(part, whole, f.Close()); err != nil {
				t.Errorf("overwriting: %v", err)
			}
			copy(want[page:], "new")
			copy(want[3*page:], bytes.Repeat([]byte("x"), page))
			dropCaches(t)
			wantFile(t, m.Path("file"), want)
			for _, said := range c.mount {
				m.Says(said, 1)
			}
			checkEvents(t, m)
		})
		if listed := d.listed(t); len(listed) > 0 {
			t.Errorf("%s: still listed: %v", c.name, listed)
		}
		d.clearDevice(t)
	}
}

// cover mounts a file over another, or nothing over a directory, until the end of the test.
func cover(t *testing.T, over, with string) {
	t.Helper()
	err := unix.Mount(with, over, "", unix.MS_BIND, "")
	if with == "" {
		err = unix.Mount("none", over, "tmpfs", 0, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(over, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestDoctorForAnOrdinaryUser has the device out of reach, but not its list.
func TestDoctorForAnOrdinaryUser(t *testing.T) {
	d := newDisk(t, filesystems[0])
	r := harness.Run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", os.Getenv("MENDFS_BIN"), "doctor", d.at)
	for _, line := range []string{"badblocks     readable", "salvage       by the page of 4096 bytes", "/dev/pmem0: permission denied", "root can read the good sectors"} {
		if !strings.Contains(r.Stdout, line) {
			t.Errorf("doctor does not say %q: %s%s", line, r.Stdout, r.Stderr)
		}
	}
}
