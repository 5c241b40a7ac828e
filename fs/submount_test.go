package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// subMounts mounts a tmpfs on a and on b below the backing directory, with
// files that have the same inode numbers in both.
func (m *mounted) subMounts() {
	m.t.Helper()
	for _, name := range []string{"a", "b"} {
		at := m.below(name)
		mkdir(m.t, at)
		write(m.t, at+"/covered", "")
		if err := unix.Mount("mendfstest", at, "tmpfs", 0, "mode=777"); err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(func() {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil { // the serving process may still have descriptors
				m.t.Error(err)
			}
		})
		for i := range 5 {
			write(m.t, fmt.Sprintf("%s/f%d", at, i), name)
		}
		mkdir(m.t, at+"/d")
		write(m.t, at+"/d/g", "longer than the others")
		run(m.t, "chown", "-R", "1000:1000", at)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(m.below("a/f0"), &a), unix.Stat(m.below("b/f0"), &b)); err != nil || a.Ino != b.Ino {
		m.t.Fatalf("inode numbers %d and %d: this shows nothing (%v)", a.Ino, b.Ino, err)
	}
}

// TestSubMountsCrossed: where the backing is held by its directory, what is
// mounted below is part of the mount, under inode numbers of its own.
func TestSubMountsCrossed(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second, User: bob.uid, MaxFds: 8})
	m.subMounts()
	const list = `find . -printf '%i %p\n' | sort`
	first := sh(t, m.mnt, bob, list)
	seen := map[string]string{}
	for line := range strings.Lines(first) {
		ino, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if other, ok := seen[ino]; ok {
			t.Errorf("%s and %s are both inode %s", other, path, ino)
		}
		seen[ino] = path
	}
	if len(seen) != 1+2*8 {
		t.Errorf("not all is there:\n%s", first)
	}
	if again := sh(t, m.mnt, bob, list); again != first {
		t.Errorf("at first\n%s\nnow\n%s", first, again)
	}
	if said := sh(t, m.mnt, bob, `python3 - <<'EOF'
import os
for dir in 'a', 'b', 'a/d', 'b/d':
	for e in os.scandir(dir):
		if e.inode() != e.stat(follow_symlinks=False).st_ino: print(e.path, e.inode(), e.stat().st_ino)
EOF`); said != "" {
		t.Errorf("readdir and stat disagree:\n%s", said)
	}
	const script = `cat a/f1 b/f1; echo new >a/f1; cat a/f1; mv a/f2 b/f2; ls a b; ln a/f1 b/l`
	want := sh(t, m.backing, bob, script)
	sh(t, m.backing, bob, `echo -n a >a/f1; mv b/f2 a/f2; echo -n b >b/f2`)
	if got := sh(t, m.mnt, bob, script); got != want {
		t.Errorf("through the mount:\n%s\nwithout mendfs:\n%s", got, want)
	}
}

// TestSubMountsHidden: where the backing is held by a clone of its mount,
// the directories that are mounted over are seen as they are below.
func TestSubMountsHidden(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	m.subMounts()
	for _, name := range []string{"a", "b"} {
		if entries, err := os.ReadDir(m.path(name)); err != nil || len(entries) != 1 || entries[0].Name() != "covered" {
			t.Errorf("%s: %v, %v", name, entries, err)
		}
	}
}

// TestSubvolumes: they are devices of their own in one mount.
func TestSubvolumes(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second, FS: "btrfs"})
	for _, name := range []string{"a", "b"} {
		run(t, "btrfs", "subvolume", "create", m.below(name))
		write(t, m.below(name+"/f"), name)
	}
	inos := strings.Fields(sh(t, m.mnt, root, `stat -c %i a b a/f b/f; cat a/f b/f`))
	raw := strings.Fields(sh(t, m.backing, root, `stat -c %i a b a/f b/f`))
	if len(inos) != 5 || inos[0] == inos[1] || inos[2] == inos[3] || raw[2] != raw[3] {
		t.Errorf("%v, without mendfs %v", inos, raw)
	}
}
