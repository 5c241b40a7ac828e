package fs

import (
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestIoctl: what is not on the list never reaches the backing filesystem,
// which would take the daemon for the one who asks.
func TestIoctl(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	const script = `python3 - <<'EOF'
import errno, fcntl, os
for path in 'f', 'd':
	for name, cmd in ('shutdown', 0x8004587d), ('FITRIM', 0xc0185879), ('FS_IOC_SETVERSION', 0x40087602), ('FIFREEZE', 0xc0045877), ('FIBMAP+_IOWR', 0xc0406601), ('EXT4_IOC_SWAP_BOOT', 0x6611):
		try:
			fcntl.ioctl(os.open(path, os.O_RDONLY), cmd, bytes(64))
			print(path, name, 'was done')
		except OSError as e:
			if e.errno not in (errno.ENOTTY, errno.EOPNOTSUPP) and (name, e.errno) != ('FIFREEZE', errno.EPERM): # the kernel's
				print(path, name, e)
EOF`
	for name, who := range map[string]user{"root": root, "a user": alice} {
		sh(t, m.mnt, root, `rm -rf f d; echo x >f; mkdir d; chown 65534 f d`)
		if said := sh(t, m.mnt, who, script); said != "" {
			t.Errorf("as %s:\n%s", name, said)
		}
	}
	if got := sh(t, m.mnt, root, `lsattr -v f`); !strings.Contains(got, "Inappropriate ioctl") {
		t.Errorf("lsattr -v: %q", got)
	}
	write(t, m.path("g"), "alive")
}

// TestChattr: flags and projects are shown and changed as without mendfs, and
// by nobody else.
func TestChattr(t *testing.T) {
	const prepare = `touch f g h; mkdir d e; chown 1000 f d; chmod 777 .; chattr +i h`
	const script = `
	try() { "$@" 2>&1; echo "$1 $2 $3: $?"; }
	try chattr +d f; try chattr +d d; try chattr +A g; try chattr +d e
	try chattr +i f; try chattr +a d; try chattr -i h
	try xfs_io -c 'chproj 7' f; try xfs_io -c 'chproj 7' d; try xfs_io -c 'chproj 8' g
	xfs_io -r -c lsproj f
	try touch f; try rm -f h; try rmdir d/x`
	const left = `lsattr -pd f g h d e; lsattr -d f d; find . -printf '%p %y %#m %U:%G %n\n' | sort; chattr -ia f g h d e`
	for _, kind := range []string{"ext4", "xfs"} {
		m := mountNew(t, serveConfig{Timeout: time.Hour, FS: kind})
		for name, who := range map[string]user{"root": root, "bob": bob, "alice": alice} {
			var said [2]string
			mkdir(t, m.below("raw-"+name))
			for i, dir := range []string{m.path(name), m.below("raw-" + name)} {
				if i == 0 {
					mkdir(t, dir)
				}
				said[i] = sh(t, dir, root, prepare) + sh(t, dir, who, script) + "left: " + sh(t, dir, root, left)
			}
			if said[0] != said[1] || !strings.Contains(said[0], "chattr +i f: ") {
				t.Errorf("%s on %s: through the mount:\n%s\nwithout mendfs:\n%s", name, kind, said[0], said[1])
			}
		}
		write(t, m.path("f"), "")
		if said := sh(t, m.mnt, root, `before=$(stat -c %.Z f); sleep 0.02; chattr +d f; [ $before != $(stat -c %.Z f) ] || echo the time of change stays $before`); said != "" {
			t.Errorf("%s: %s", kind, said)
		}
	}
}

// TestSetFileattr is of requests that the kernel's FUSE does not send today.
func TestSetFileattr(t *testing.T) {
	fd, _ := openPath(t, t.TempDir())
	defer unix.Close(fd)
	own, err := unix.Open(procPath(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	callers, err := newCallers()
	if err != nil {
		t.Fatal(err)
	}
	defer callers.close()
	f := &FS{callers: callers, handles: handles{open: map[uint64]*handle{1: {fd: own}}}}
	me := uint32(unix.Geteuid())
	for _, c := range []struct {
		name string
		cmd  uint32
		size int
		uid  uint32
		want unix.Errno
	}{
		{"the owner", setFlags, 4, me, 0},
		{"another user", setFlags, 4, 12345, unix.EPERM},
		{"another user, project", setFsxattr, 28, 12345, unix.EPERM},
		{"a long, which the kernel did not look at", setFlags, 8, me, unix.ENOTTY},
		{"too short", setFsxattr, 27, me, unix.ENOTTY},
		{"nothing", setFlags, 0, me, unix.ENOTTY},
	} {
		in := fuse.IoctlIn{InHeader: fuse.InHeader{Caller: fuse.Caller{Owner: fuse.Owner{Uid: c.uid}}}, Fh: 1, Cmd: c.cmd}
		if got := f.Ioctl(nil, &in, make([]byte, c.size), nil, nil); got != fuse.Status(c.want) && got != fuse.Status(unix.EOPNOTSUPP) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	f.config.ReadOnly = true
	if got := f.Ioctl(nil, &fuse.IoctlIn{Fh: 1, Cmd: setFlags}, make([]byte, 4), nil, nil); got != fuse.EROFS {
		t.Errorf("read-only: %v", got)
	}
}
