package posix

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mendfs/mendfs/tests/harness"
)

// forced are the differences that the kernel's FUSE, or what mendfs is,
// leaves no choice about (docs/limits.md): the check, and what a mount shows instead.
var forced = []struct{ check, mounted, why string }{
	{`fallocate: (collapse|insert), .*`, `ENOTSUP .*`,
		"fuse_file_fallocate knows neither mode (Linux 6.18)"},
	{`statfs: pathconf, .*`, `\[255, 4096, 127, 1\]`,
		"the C library guesses LINK_MAX from the filesystem's type"},
	{`fallocate: unshare, .*`, `ENOTSUP .*`,
		"nor this one, which XFS has"},
	{`o_direct_unaligned: .*`, `\d+`,
		"O_DIRECT ends at the kernel's FUSE: the daemon's own reads and writes need no alignment"},
	{`chown: (member|stranger), of 1000, (6777|2766), nothing`, `EPERM .* False`,
		"fuse_setattr removes capabilities before it asks whether the caller may do this (on a file without the bits anybody may, on all filesystems)"},
	{`dropped_by_changes: .*, root, 4777 with capabilities`, `(.* 0777|\('0o100777', .*) .* False`,
		"root's write to a file with capabilities and chown(-1, -1) arrive as the same requests: setuid goes"},
	{`dropped_by_changes: mapping, .* with capabilities`, `.* False`,
		"mapped pages come back as writes, and the backing filesystem drops capabilities on any write"},
	{`of_files: (read at the end|copied from)`, `none none`,
		"FUSE inodes have S_NOATIME: access times move only by READs that arrive"},
	{`of_files: truncate to the same`, `mtime\+ctime none`,
		"truncate(2) of XFS to the size that a file has changes nothing; the daemon's ftruncate(2) moves times, as on ext4"},
	{`of_others: use of a fifo`, `none`,
		"FUSE inodes have S_NOCMTIME and S_NOATIME, and the data of a fifo never arrives"},
}

// TestAsSeveralUsers runs the script on a directory and on a mount of another
// one on the same filesystem.
func TestAsSeveralUsers(t *testing.T) {
	for _, disk := range []struct {
		kind string
		mib  int64
		mkfs []string
	}{
		{"ext4", 256, []string{"-b", "4096"}},
		{"xfs", 320, nil},
	} {
		t.Run(disk.kind, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, disk.kind, disk.mib, disk.mkfs...)
			m := mount(t, d, "-o", "suid,dev")
			var bare, mounted []line
			var both sync.WaitGroup
			both.Go(func() { bare = script(t, bareDir(t, d)) })
			mounted = script(t, m.At)
			both.Wait()
			if !t.Failed() {
				compare(t, bare, mounted, 5000)
			}
		})
	}
}

// TestMountOptions compares what mounts with other options let users do: a
// directory that is mounted with them, a mount of that directory, which takes
// them over, and a mount that has them while its directory has not.
func TestMountOptions(t *testing.T) {
	d := newDisk(t, "ext4", 64)
	for _, options := range []string{"nosuid", "nodev", "noexec", "nosuid,nodev,noexec"} {
		t.Run(options, func(t *testing.T) {
			defer remount(t, d, "suid,dev,exec")
			remount(t, d, options)
			bare := script(t, bareDir(t, d), "options")
			compare(t, bare, script(t, mount(t, d).At, "options"), 40)

			remount(t, d, "suid,dev,exec")
			compare(t, bare, script(t, mount(t, d, "-o", options).At, "options"), 40)
		})
	}
}

// TestAccessTimes compares which times move where the mounts have the options
// for access times.
func TestAccessTimes(t *testing.T) {
	d := newDisk(t, "ext4", 64)
	for _, option := range []string{"noatime", "relatime", "strictatime"} {
		t.Run(option, func(t *testing.T) {
			defer remount(t, d, "atime,relatime")
			remount(t, d, "atime,"+option)
			bare := script(t, bareDir(t, d), "times")
			compare(t, bare, script(t, mount(t, d).At, "times"), 60)
			remount(t, d, "atime,relatime")
			compare(t, bare, script(t, mount(t, d, "-o", option).At, "times"), 60)
		})
	}
}

// TestTar packs, unpacks and compares a tree: types, owners, modes, times.
func TestTar(t *testing.T) {
	d := newDisk(t, "ext4", 64)
	m := mount(t, d)
	m.Sh(`mkdir from to
		cd from
		for i in $(seq 50); do mkdir d$i; seq $i >d$i/f; ln d$i/f d$i/hard; ln -s f d$i/link; touch -d @$i.123456789 d$i/f d$i; done
		mkfifo p; chmod 4751 d1/f; chown 1000:2000 d2/f; chmod 2750 d3
		cd ..
		tar --xattrs --acls -c -f all.tar -C from .
		tar --xattrs --acls -x -p -f all.tar -C to
		tar --xattrs --acls -d -f all.tar -C to
		tar -d -f all.tar -C from`)
}

func newDisk(t *testing.T, kind string, mib int64, mkfs ...string) *harness.Disk {
	t.Helper()
	harness.Need(t, harness.Root, harness.Program("python3"))
	return harness.NewDisk(t, kind, mib, mkfs...)
}

// mount mounts a fresh directory of the disk, for all users.
func mount(t *testing.T, d *harness.Disk, flags ...string) *harness.Mount {
	t.Helper()
	return harness.New(t, harness.Config{Backing: bareDir(t, d), Flags: append([]string{"--allow-other"}, flags...)})
}

func bareDir(t *testing.T, d *harness.Disk) string {
	t.Helper()
	dir, err := os.MkdirTemp(d.At, "")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func remount(t *testing.T, d *harness.Disk, options string) {
	t.Helper()
	if r := harness.Run(t, "mount", "-o", "remount,"+options, d.At); r.Exit != 0 {
		t.Fatalf("remounting with %s: %s", options, r.Stderr)
	}
}

// line is what the script says of one check.
type line struct{ check, outcome string }

// script runs the script, or one module of it, on a directory.
func script(t *testing.T, dir string, module ...string) []line {
	t.Helper()
	source, err := filepath.Abs("script")
	if err != nil {
		t.Error(err)
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", append([]string{"-B", source, dir}, module...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("the script on %s: %v\n%s", dir, err, stderr.String())
		return nil
	}
	var said []line
	seen := map[string]bool{}
	for text := range strings.Lines(string(out)) {
		words := strings.SplitN(strings.TrimSuffix(text, "\n"), ": ", 3)
		if len(words) != 3 || seen[words[0]+": "+words[1]] {
			t.Errorf("the script says %q, want check: what: outcome, once", text)
			continue
		}
		seen[words[0]+": "+words[1]] = true
		said = append(said, line{words[0] + ": " + words[1], words[2]})
	}
	return said
}

// compare reports each check that came out differently, and fails if there
// were fewer than atLeast.
func compare(t *testing.T, bare, mounted []line, atLeast int) {
	t.Helper()
	if len(bare) < atLeast || len(bare) != len(mounted) {
		t.Errorf("%d checks of the directory and %d of the mount, want the same number, at least %d", len(bare), len(mounted), atLeast)
		return
	}
	for i, b := range bare {
		switch m := mounted[i]; {
		case b.check != m.check:
			t.Errorf("check %d is %q on the directory and %q on the mount", i, b.check, m.check)
			return
		case b.outcome != m.outcome && !isForced(m):
			t.Errorf("%s\n\twithout mendfs: %s\n\tin the mount:   %s", b.check, b.outcome, m.outcome)
		}
	}
}

func isForced(m line) bool {
	for _, f := range forced {
		if regexp.MustCompile("^"+f.check+"$").MatchString(m.check) && regexp.MustCompile("^"+f.mounted+"$").MatchString(m.outcome) {
			return true
		}
	}
	return false
}
