package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// Running is a running mount as the registry knows it.
type Running struct {
	Mountpoint string `json:"mountpoint"`
	Backing    string `json:"backing"`
	State      string `json:"state"`
	FS         string `json:"fs"`
	Pid        int    `json:"pid"`
	Owner      int    `json:"-"` // the uid of who mounted: whose registry it is
	Rel        string `json:"-"` // set by Find: the path asked for, relative to Mountpoint; "." for the mountpoint
}

// entry is one file of the registry: a mount, and what is needed to tell
// whether another one would get in its way. The mount's process holds a write
// lock on the file for as long as it lives, so that an entry without one is
// what a crash left. All may read the file, but a write lock takes a
// descriptor that may write: nobody else can make a dead entry look alive, as
// with flock(2).
type entry struct {
	Running
	Started  uint64 `json:"started"` // when the process was: see vitals
	Dev      string `json:"dev"`     // of the FUSE filesystem, once it is mounted
	BackedBy spot   `json:"backed_by"`
	At       spot   `json:"at"`      // the directory that the mountpoint covers
	Records  spot   `json:"records"` // the state directory
}

// registry is the directory that lists the running mounts of one user.
type registry struct {
	dir string
	uid int // whose it is
}

// rootRegistry is where root's mounts are listed, for all to read.
const rootRegistry = "/run/mendfs"

// registryDir is where this user's mounts are listed.
func registryDir() string {
	if os.Geteuid() == 0 {
		return rootRegistry
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "mendfs")
	}
	return "/tmp/mendfs-" + strconv.Itoa(os.Geteuid())
}

// registries is all that there are for this user: his own and root's. One that
// somebody else could have written is none.
func registries() []*registry {
	var list []*registry
	if checkRegistry(registryDir(), os.Geteuid()) == nil {
		list = append(list, &registry{registryDir(), os.Geteuid()})
	}
	if registryDir() != rootRegistry && checkRegistry(rootRegistry, 0) == nil {
		list = append(list, &registry{rootRegistry, 0})
	}
	return list
}

// openRegistry makes sure that the registry dir is there, and nobody else's.
func openRegistry(dir string) (*registry, error) {
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o755 // users may see which directories root protects
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, failed(err, "make the directory above it writable", "the list of running mounts can't be kept in %s", dir)
	}
	if err := checkRegistry(dir, os.Geteuid()); err != nil {
		return nil, failed(err, "remove it, or give it to yourself with mode 0700", "the list of running mounts can't be kept in %s", dir)
	}
	return &registry{dir, os.Geteuid()}, nil
}

// checkRegistry fails unless only the user uid can have written what is in dir.
func checkRegistry(dir string, uid int) error {
	if err := trusted(dir, uid); err != nil {
		return err
	}
	return checkOwned(dir, uid)
}

var errSymlink = errors.New("it is a symbolic link")

// checkOwned fails unless path is a directory, no symlink, that only the user
// uid can write.
func checkOwned(path string, uid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errSymlink
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return unix.ENOTDIR
	case int(st.Uid) != uid:
		return fmt.Errorf("it belongs to uid %d", st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others can write it (mode %04o)", st.Mode&0o7777)
	}
	return nil
}

// lock keeps other mounts from starting until the returned file is closed:
// between the look at the list and the new entry in it nothing may change.
func (r *registry) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return f, nil
}

// entries is all mounts whose process lives.
func (r *registry) entries() ([]entry, error) {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, path := range files {
		e, err := readEntry(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errStale) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		e.Owner = r.uid
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b entry) int { return compareMountpoints(a.Running, b.Running) })
	return all, nil
}

var errStale = errors.New("left by a process that is gone")

func readEntry(path string) (entry, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // root reads what users have made
	if err != nil {
		return entry{}, err
	}
	defer f.Close()
	locked, err := writeLocked(f)
	if err != nil {
		return entry{}, err
	}
	if !locked {
		if now, err := os.Stat(path); err == nil && !isFile(f, now) {
			return readEntry(path) // its process has replaced it just now
		}
		return entry{}, errStale
	}
	var e entry
	return e, json.NewDecoder(io.LimitReader(f, maxEntry)).Decode(&e)
}

// maxEntry is more than an entry can have: three paths, quoted.
const maxEntry = 1 << 17

// writeLock takes the write lock on f for as long as f is open.
func writeLock(f *os.File) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
}

// writeLocked reports whether another open file has the write lock. It asks
// what would keep it from a read lock: the read locks of others don't.
func writeLocked(f *os.File) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, err
}

func isFile(f *os.File, info os.FileInfo) bool {
	own, err := f.Stat()
	return err == nil && os.SameFile(own, info)
}

// sweep removes what crashes have left. The registry must be locked.
func (r *registry) sweep() error {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range files {
		if _, err := readEntry(path); errors.Is(err, errStale) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// conflict is why e can't be mounted beside the running mounts all; nil if it
// can.
func (e entry) conflict(all []entry, where func(entry) (at, next string)) error {
	for _, o := range all {
		at, next := where(o)
		switch {
		case o.BackedBy == e.BackedBy:
			return failed(nil, next, "already mounted: %s is the backing directory of the mount at %s", e.Backing, at)
		case o.BackedBy.holds(e.BackedBy):
			return failed(nil, next, "the backing directory %s lies within %s, which is mounted at %s", e.Backing, o.Backing, at)
		case e.BackedBy.holds(o.BackedBy):
			return failed(nil, next, "the backing directory %s contains %s, which is mounted at %s", e.Backing, o.Backing, at)
		case o.BackedBy.holds(e.At):
			return failed(nil, next, "the mountpoint %s lies inside %s, which is mounted at %s", e.Mountpoint, o.Backing, at)
		case o.BackedBy.holds(e.Records):
			return failed(nil, "give another with --state", "the state directory %s lies inside %s, which is mounted at %s", e.State, o.Backing, at)
		case e.BackedBy.holds(o.Records):
			return failed(nil, next, "the backing directory %s contains %s, the state directory of the mount at %s", e.Backing, o.State, at)
		case o.Records == e.Records:
			return failed(nil, "give another with --state", "the state directory %s is in use by the mount at %s", e.State, at)
		}
	}
	return nil
}

// detached reports whether the mount is in no mount table any more, neither
// that of its process nor ours, and lives on only for its users. What can't be
// asked counts as attached.
func (e entry) detached() bool {
	if e.Dev == "" {
		return false // about to be mounted
	}
	for _, process := range []string{strconv.Itoa(e.Pid), "self"} {
		all, err := mountsOf(process)
		if err != nil || slices.ContainsFunc(all, func(m mountEntry) bool { return m.Dev == e.Dev && m.Type == FSType }) {
			return false
		}
	}
	return true
}

// endingTime is how long the process of a detached mount may take to end before
// a new mount in its place is refused.
const endingTime = 5 * time.Second

// admit refuses e if it would get in the way of a mount that runs. Where that
// one is detached it waits: umount(8) returns before the process that served has
// ended, and what was unmounted can be mounted again at once. The registry must
// be locked.
func (r *registry) admit(e entry, t *target) error {
	if err := r.sweep(); err != nil {
		return failed(err, "remove the file", "the list of running mounts can't be tidied")
	}
	all, err := r.entries()
	for end := time.Now().Add(endingTime); err == nil && e.waitsFor(all) && time.Now().Before(end); all, err = r.entries() {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return failed(err, "remove the file if no mendfs runs", "the list of running mounts can't be read")
	}
	if err := e.conflict(all, entry.whereabouts); err != nil {
		return err
	}
	return otherUsersMount(t, all)
}

// waitsFor reports whether one of all is in the way of e that may be about to end:
// it is detached, or its process has gone since the list was read.
func (e entry) waitsFor(all []entry) bool {
	return slices.ContainsFunc(all, func(o entry) bool {
		if e.conflict([]entry{o}, entry.unlocated) == nil {
			return false
		}
		_, err := os.Stat("/proc/" + strconv.Itoa(o.Pid))
		return o.detached() || errors.Is(err, os.ErrNotExist)
	})
}

// registration is this process's entry; its lock is held until close.
type registration struct {
	entry
	registry *registry
	path     string
	file     *os.File
}

// file is the path of e. The backing directory names it, which two running
// mounts can't have in common; a mountpoint they can, if one was detached.
func (r *registry) file(e entry) string {
	return filepath.Join(r.dir, fileid.Short(e.BackedBy.Dev+" "+e.BackedBy.Inner)+".json")
}

// add puts e on the list. The registry must be locked.
func (r *registry) add(e entry) (*registration, error) {
	reg := &registration{entry: e, registry: r, path: r.file(e)}
	return reg, reg.write()
}

// write replaces the entry's file: whoever reads it finds a whole and locked
// one, the old or the new.
func (reg *registration) write() error {
	tmp := reg.path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) { // left by a crash; others may have it open
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(
		writeLock(f),
		json.NewEncoder(f).Encode(reg.entry),
		f.Chmod(0o644),
		os.Rename(tmp, reg.path),
	)
	if err != nil {
		_ = f.Close() // the file is not in use
		return fmt.Errorf("%s: %w", tmp, err)
	}
	if reg.file != nil {
		_ = reg.file.Close() // replaced
	}
	reg.file = f
	return nil
}

// mounted notes the device number of the FUSE filesystem.
func (reg *registration) mounted(dev string) error {
	lock, err := reg.registry.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	reg.Dev = dev
	return reg.write()
}

// close takes the entry off the list.
func (reg *registration) close() error {
	return errors.Join(os.Remove(reg.path), reg.file.Close())
}
