package mount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// place is an existing file or directory, looked up once: everything is asked
// of the descriptor, so that a rename or a symlink made meanwhile can't lead a
// check and the action after it to different places.
type place struct {
	fd    int        // O_PATH; closed by close
	path  string     // absolute, without symlinks
	mount mountEntry // the mount it lies on

	covered bool // a dead mount of ours hides it; see look
}

// lookup finds path. It works on the root of a dead FUSE mount as well: O_PATH
// asks nothing of the filesystem there (Linux 6.18; TestDeadMountIsReplaced).
func lookup(path string) (*place, error) { return lookupAs(path, 0) }

func lookupAs(path string, flags int) (*place, error) {
	for try := 1; ; try++ {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
		if err != nil {
			return nil, err
		}
		p := &place{fd: fd}
		if err = p.locate(); err == nil {
			return p, nil
		}
		p.close()
		if !errors.Is(err, errDetached) || try == 3 { // what was below it, or nothing, is there now
			return nil, err
		}
	}
}

// errDetached says that a place was unmounted while it was looked at.
var errDetached = errors.New("not in /proc/self/mountinfo")

func (p *place) close() { _ = unix.Close(p.fd) } // O_PATH: nothing was written through it

func (p *place) locate() error {
	path, err := os.Readlink(fdPath(p.fd))
	if err != nil {
		return err
	}
	p.path = path
	id, err := mountID(p.fd)
	if err != nil {
		return err
	}
	all, err := mounts()
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.ID == id {
			p.mount = e
			return nil
		}
	}
	return fmt.Errorf("mount %d: %w", id, errDetached)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// mountID reads fdinfo, which answers for dead mounts too; statx would not.
func mountID(fd int) (int, error) {
	f, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if id, ok := strings.CutPrefix(s.Text(), "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(id))
		}
	}
	return 0, fmt.Errorf("no mnt_id in fdinfo")
}

// isMountRoot reports whether something is mounted at this very place.
func (p *place) isMountRoot() bool { return p.mount.Mountpoint == p.path }

// isDead reports whether the place is on a FUSE mount whose daemon is gone. Of
// a mount of ours that is listed at its path, the list tells: its process lives. The
// device number alone could be that of a mount whose process is just ending.
func (p *place) isDead() bool {
	if p.mount.Type == FSType {
		if all, err := visible(); err == nil {
			if e := p.mount.listed(all); e != nil && e.Mountpoint == p.mount.Mountpoint {
				return false
			}
		}
	}
	return !hasServer(p.fd, p.mount)
}

// checkDir fails if the place is not a directory that can be asked. It sends
// no request to the server of a mount: isDead has done that where it has to be.
func (p *place) checkDir() error {
	var st unix.Statx_t
	if err := unix.Statx(p.fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return nil
}

// spot names a directory within its filesystem, whatever the path by which it
// was reached: bind mounts and mount namespaces make no difference.
type spot struct {
	Dev   string `json:"dev"`   // "major:minor" of the superblock
	Inner string `json:"inner"` // path from the root of that filesystem
}

func (p *place) spot() spot {
	return spot{Dev: p.mount.Dev, Inner: filepath.Join(p.mount.Root, relative(p.mount.Mountpoint, p.path))}
}

// holds reports whether o is s or lies below it.
func (s spot) holds(o spot) bool { return s.Dev == o.Dev && below(s.Inner, o.Inner) }

// holds reports whether o is p or lies below it, by path or by filesystem.
func (p *place) holds(o *place) bool {
	return below(p.path, o.path) || p.spot().holds(o.spot())
}

// below reports whether the clean absolute path is dir or lies below it.
func below(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// relative is path, which lies below dir, seen from dir.
func relative(dir, path string) string {
	rel := strings.Trim(strings.TrimPrefix(path, dir), "/")
	if rel == "" {
		return "."
	}
	return rel
}

// isReadOnly reports whether nothing can be written there: the mount or the
// filesystem is read-only.
func (p *place) isReadOnly() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(p.fd, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}
