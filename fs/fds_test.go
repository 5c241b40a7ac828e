package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// forgetAll makes the kernel forget what is not in use: a remount drops the
// mount's dentries.
func (m *mounted) forgetAll() {
	m.t.Helper()
	if err := unix.Mount("", m.mnt, "", unix.MS_REMOUNT, ""); err != nil {
		m.t.Fatal(err)
	}
}

// names walks a tree and gives all names, sorted, with their sizes.
func names(t *testing.T, dir string) string {
	t.Helper()
	return sh(t, dir, user{}, `find . -type f -printf '%p %s %i\n' | sort`)
}

func TestFdBudget(t *testing.T) {
	const budget, dirs, files = 256, 50, 100
	m := mountNew(t, serveConfig{Timeout: time.Hour, MaxFds: budget})
	for d := range dirs {
		dir := fmt.Sprintf("d%d", d)
		mkdir(t, m.below(dir))
		for i := range files {
			write(t, m.below(fmt.Sprintf("%s/f%d", dir, i)), fmt.Sprint(d, " ", i))
		}
	}
	base := m.fds() - m.stats().Fds
	unlinked, err := os.OpenFile(m.path("unlinked"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	names(t, m.mnt) // takes its descriptor away, while it has a link
	if err := os.Remove(m.path("unlinked")); err != nil {
		t.Fatal(err)
	}

	if got, want := names(t, m.mnt), names(t, m.backing); got != want {
		t.Fatalf("find says\n%.500s\nwant\n%.500s", got, want)
	}
	s := m.stats()
	if s.Inodes != dirs*files+dirs+2 {
		t.Errorf("the kernel should know every file: %+v", s)
	}
	if s.Fds > budget || m.fds() > budget+base {
		t.Errorf("%d descriptors in use, counted %+v, budget %d", m.fds(), s, budget)
	}

	// Files without a descriptor work like all others, also without a name.
	if err := errors.Join(unlinked.Chmod(0o640), unlinked.Truncate(7)); err != nil {
		t.Error(err)
	}
	if st, err := unlinked.Stat(); err != nil || st.Mode() != 0o640 || st.Size() != 7 {
		t.Errorf("a file without a name: %v, %v", st, err)
	}
	unlinked.Close()
	for d := range dirs {
		path := m.path(fmt.Sprintf("d%d/f%d", d, d))
		if got, want := read(t, path), fmt.Sprint(d, " ", d); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		write(t, path, "new")
		if got := read(t, m.below(fmt.Sprintf("d%d/f%d", d, d))); got != "new" {
			t.Errorf("%s: %q below", path, got)
		}
		if err := os.Rename(path, path+".x"); err != nil {
			t.Error(err)
		}
		write(t, m.path(fmt.Sprintf("d%d/new", d)), "x")
	}

	// Open files go before idle inodes.
	var open []*os.File
	for i := range budget - 20 {
		f, err := os.Open(m.path(fmt.Sprintf("d%d/f99", i%dirs)))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	if s := m.stats(); s.Fds > budget || s.Handles != len(open) {
		t.Errorf("with %d files open: %+v", len(open), s)
	}
	for _, f := range open {
		f.Close()
	}

	m.forgetAll()
	eventually(t, "the kernel forgets all but the root", func() bool {
		return m.stats() == Stats{Inodes: 1, Fds: 1}
	})
	if m.fds() > base+1 {
		t.Errorf("%d descriptors at the end, %d and the root's at the beginning", m.fds(), base)
	}
}

// TestReusedInodeNumber removes files whose descriptor was closed early, in
// the backing directory, and makes others, which get their numbers.
func TestReusedInodeNumber(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Hour, MaxFds: 4})
	for i := range 50 {
		write(t, m.below(fmt.Sprint("old", i)), "old")
	}
	before := names(t, m.mnt)
	for i := range 50 {
		if err := os.Remove(m.below(fmt.Sprint("old", i))); err != nil {
			t.Fatal(err)
		}
	}
	reused := 0
	for i := range 50 {
		name := fmt.Sprint("new", i)
		write(t, m.below(name), name)
		var st unix.Stat_t
		if err := unix.Stat(m.below(name), &st); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(before, fmt.Sprintf(" %d\n", st.Ino)) {
			reused++
		}
		if got := read(t, m.path(name)); got != name {
			t.Errorf("%s: %q", name, got)
		}
		// A few still have their descriptor, and so their content.
		if b, err := os.ReadFile(m.path(fmt.Sprint("old", i))); !errors.Is(err, unix.ESTALE) && !errors.Is(err, os.ErrNotExist) && string(b) != "old" {
			t.Errorf("a removed file: %q, %v", b, err)
		}
	}
	if reused == 0 {
		t.Error("no inode number was used again: this shows nothing")
	}
}

// TestConcurrency makes, looks up, opens, reads and removes at once, under a
// tight budget: the race detector watches the serving process.
func TestConcurrency(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: 10 * time.Millisecond, MaxFds: 16})
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() { // ends by itself
			for i := range 60 {
				dir := m.path(fmt.Sprint("d", i%7))
				if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
					t.Error(err)
				}
				path := filepath.Join(dir, fmt.Sprint("f", w))
				text := fmt.Sprint(w, i)
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Error(err)
				}
				if b, err := os.ReadFile(path); err != nil || string(b) != text {
					t.Errorf("%s: %q, %v", path, b, err)
				}
				if _, err := os.ReadDir(dir); err != nil {
					t.Error(err)
				}
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	forget := make(chan struct{})
	go func() { // ends with the workers
		defer close(forget)
		for range 20 {
			_ = unix.Mount("", m.mnt, "", unix.MS_REMOUNT, "") // as good as it may be: EBUSY is fine
			time.Sleep(10 * time.Millisecond)
		}
	}()
	all.Wait()
	<-forget
	if err := os.RemoveAll(m.path("d0")); err != nil {
		t.Error(err)
	}
	m.forgetAll()
	eventually(t, "the kernel forgets all but the root", func() bool { return m.stats().Inodes == 1 && m.stats().Handles == 0 })
}

// TestCrowded: ordinary users can't use up all descriptors, neither with open
// files nor with those that have no name any more. Lookups work, and root.
func TestCrowded(t *testing.T) {
	const budget, share = 64, 64 - 64/8
	for name, open := range map[string]string{
		"files":       `os.open('f', os.O_RDONLY)`,
		"directories": `os.open('.', os.O_RDONLY)`,
		"no names":    `os.open('g', os.O_RDWR | os.O_CREAT | os.O_EXCL); os.unlink('g')`,
	} {
		t.Run(name, func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, MaxFds: budget})
			sh(t, m.mnt, root, `chmod 777 .; echo x >f`)
			said := sh(t, m.mnt, root, `python3 - <<'EOF'
import os
os.seteuid(1000)
count = 0
try:
	while count < 200:
		`+open+`
		count += 1
except OSError as e:
	print(e.strerror)
print(os.stat('f').st_size, os.path.exists('not there'))
os.seteuid(0)
open('h', 'w')
print(count <= `+fmt.Sprint(share)+`, open('f').read(), end='')
EOF`)
			if want := "Too many open files in system\n2 False\nTrue x\n"; said != want {
				t.Errorf("%q, want %q", said, want)
			}
		})
	}
}

// TestRemovedWhileOpen: a file that is open and has no name any more takes one
// descriptor, like any that is open. Otherwise the users' share of the descriptors
// would be worth twice as many, which is more than there are.
func TestRemovedWhileOpen(t *testing.T) {
	const budget, files = 64, 50
	for _, backing := range []string{"ext4", "xfs", "btrfs", "tmpfs"} {
		t.Run(backing, func(t *testing.T) {
			m := mountNew(t, serveConfig{Timeout: time.Hour, MaxFds: budget, FS: backing})
			base := m.fds() - m.stats().Fds
			write(t, m.below("other"), "other")
			var opened []*os.File
			for i := range files {
				name := m.path(fmt.Sprint("f", i))
				f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
				opened = append(opened, f)
			}
			for i, f := range opened {
				if err := f.Truncate(int64(i)); err != nil {
					t.Error(i, err)
				}
				if st, err := f.Stat(); err != nil || st.Size() != int64(i) {
					t.Errorf("%d: %v, %v", i, st, err)
				}
			}
			if all := m.fds() - base; all > budget {
				t.Errorf("%d descriptors, the budget is %d: %+v", all, budget, m.stats())
			}
			if got := read(t, m.path("other")); got != "other" {
				t.Errorf("another file: %q", got)
			}

			// Whoever still knows the file has it when nobody has it open any more.
			known := open(t, fmt.Sprintf("/proc/self/fd/%d", opened[1].Fd()), unix.O_PATH)
			defer closeFd(t, known)
			for _, f := range opened {
				f.Close()
			}
			eventually(t, "all are closed", func() bool { return m.stats().Handles == 0 })
			if got := read(t, fmt.Sprintf("/proc/self/fd/%d", known)); got != "\x00" {
				t.Errorf("a removed file that is still known: %q", got)
			}
		})
	}
}
