package mount

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
)

// The files of a state directory, beside control.Socket.
const (
	metaFile    = "meta.json"
	lockFile    = "lock"
	journalFile = "journal"
	ledgerFile  = "ledger.db"
	eventsFile  = "events.jsonl"
	poisonFile  = "poison.jsonl"
	logFile     = "mendfs.log"
)

// metaVersion is the version of meta.json, and of the directory's layout.
const metaVersion = 1

// meta is meta.json: whose records the state directory keeps.
type meta struct {
	Version   int       `json:"version"`
	FS        string    `json:"fs"`   // fileid.Filesystem
	Root      fileid.ID `json:"root"` // of the backing directory
	Backing   string    `json:"backing"`
	Created   time.Time `json:"created"`
	RealFiles bool      `json:"real_files"` // the backing directory was not empty when this was made
	Semantics string    `json:"semantics"`  // of the last mount
	Simulate  string    `json:"simulate,omitempty"`
}

// stateDir is a state directory that this process holds the lock of.
type stateDir struct {
	path  string
	meta  meta
	made  bool // by this process
	fresh bool // without records so far
	lock  *os.File
}

// defaultState is where the records of the backing directory are kept unless
// --state says otherwise.
func defaultState(backing string, m meta) string {
	name := filepath.Base(backing)
	if name == "/" {
		name = "root"
	}
	name = strings.Map(plain, name)
	return filepath.Join(stateHome(), name+"-"+fileid.Short(m.FS+" "+m.Root.Key()))
}

// plain replaces what a terminal might obey, and bytes that are not UTF-8.
func plain(r rune) rune {
	if control.IsControl(r) || r == utf8.RuneError {
		return '_'
	}
	return r
}

func stateHome() string {
	if os.Geteuid() == 0 {
		return "/var/lib/mendfs"
	}
	return filepath.Join(cmp.Or(os.Getenv("XDG_STATE_HOME"), filepath.Join(os.Getenv("HOME"), ".local/state")), "mendfs")
}

// describe is the meta.json that a first mount of the backing directory has.
func describe(backing *place) (meta, error) {
	name, err := fileid.Filesystem(backing.fd)
	if err != nil {
		return meta{}, err
	}
	root, err := fileid.Of(backing.fd)
	if err != nil {
		return meta{}, err
	}
	empty, err := isEmpty(fdPath(backing.fd))
	if err != nil {
		return meta{}, err
	}
	return meta{
		Version: metaVersion, FS: name, Root: root, Backing: backing.path,
		Created: time.Now().UTC(), RealFiles: !empty,
	}, nil
}

// isEmpty looks for anything but what mkfs leaves.
func isEmpty(dir string) (bool, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range list {
		if e.Name() != "lost+found" {
			return false, nil
		}
	}
	return true, nil
}

// checkState refuses a state directory that is not fit for the backing
// directory that want describes: by its path alone, if want has no FS since it
// can't be examined yet. It changes nothing. The directory need not exist.
func checkState(path string, want meta) error {
	err := checkOwned(path, os.Geteuid())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, errSymlink):
		return usage("give a directory with --state", "the state directory %s can't be used: %v", path, err)
	case err != nil:
		return usage("chown and chmod 0700 it, or give another with --state", "the state directory %s can't be used: %v", path, err)
	}
	got, err := readMeta(path)
	if errors.Is(err, fs.ErrNotExist) {
		if list, err := os.ReadDir(path); err != nil || len(list) > 0 {
			return usage("give an empty or a new directory with --state", "%s is not a state directory, and not empty", path)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return got.fits(want, path)
}

// fits refuses the state directory at path, described by m, for the backing
// directory that want describes.
func (m meta) fits(want meta, path string) error {
	const next = "give another with --state"
	switch {
	case want.FS == "" && m.Backing != want.Backing:
		return usage(next+"; if "+want.Backing+" was "+m.Backing+" before, mendfs umount it first",
			"%s is the state directory of another directory: %s, not %s", path, m.Backing, want.Backing)
	case want.FS == "", m.FS == want.FS && m.Root.Key() == want.Root.Key():
		return nil
	case m.FS != want.FS:
		return usage(next, "%s is the state directory of another filesystem: %s of %s, not %s of %s",
			path, m.Backing, m.FS, want.Backing, want.FS)
	case m.Backing == want.Backing:
		return usage(next, "%s is the state directory of another directory, which was at %s before", path, m.Backing)
	}
	return usage(next, "%s is the state directory of another directory: %s, not %s", path, m.Backing, want.Backing)
}

func readMeta(dir string) (meta, error) {
	text, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return meta{}, err
	}
	var m meta
	if err := json.Unmarshal(text, &m); err != nil || m.Version < 1 {
		return meta{}, failed(err, "restore it from a backup, or start a new state directory with --state", "%s in %s is damaged", metaFile, dir)
	}
	if m.Version > metaVersion {
		return meta{}, failed(nil, "use a newer mendfs", "the state directory %s has version %d, this mendfs knows up to %d", dir, m.Version, metaVersion)
	}
	return m, nil
}

// takeState locks the state directory at path, making it first if it isn't
// there. checkState has agreed to it.
func takeState(path string, want meta) (*stateDir, error) {
	s := &stateDir{path: path, meta: want}
	if err := s.take(); err != nil {
		return nil, unusable(err, path)
	}
	return s, nil
}

// unusable is err as an *Error.
func unusable(err error, path string) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	return failed(err, roomNext(err), "the state directory %s can't be used", path)
}

// roomNext is what to do when the state directory can't be written.
func roomNext(err error) string {
	do := "mend its filesystem (see dmesg)"
	for errno, remedy := range map[unix.Errno]string{
		unix.ENOSPC: "make room on its disk (df, df -i)", unix.EDQUOT: "raise its quota",
		unix.EROFS:  "remount its filesystem read-write",
		unix.EACCES: "chown it to yourself and chmod 0700 it", unix.EPERM: "chown it to yourself and chmod 0700 it",
		unix.EFBIG: "raise the limit of file sizes (ulimit -f unlimited)",
	} {
		if errors.Is(err, errno) {
			do = remedy
		}
	}
	return do + ", or give another with --state"
}

func (s *stateDir) take() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	err := os.Mkdir(s.path, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	s.made = err == nil
	// Somebody may have made it, or what is above it, since checkState looked:
	// from here on nobody can put another in its place.
	if err := errors.Join(trusted(filepath.Dir(s.path), os.Geteuid()), checkOwned(s.path, os.Geteuid())); err != nil {
		return err
	}
	if err := s.begin(); err != nil {
		return errors.Join(err, s.abandon())
	}
	return nil
}

// begin locks the directory and writes whose it is.
func (s *stateDir) begin() (err error) {
	if s.lock, err = lockState(s.path); err != nil {
		return err
	}
	if err := os.Chmod(s.path, 0o700); err != nil { // one that was given may be open for reading
		return err
	}
	got, err := readMeta(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.fresh = true
	case err != nil:
		return err
	default:
		s.meta.Created, s.meta.RealFiles = got.Created, got.RealFiles
	}
	return s.writeMeta()
}

// abandon gives up a directory with which nothing was ever served.
func (s *stateDir) abandon() error {
	err := s.discard()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// checkLock refuses the state directory dir if another process has its lock.
func checkLock(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, lockFile)); dir == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockState(dir)
	if err != nil {
		return unusable(err, dir)
	}
	return lock.Close()
}

// lockState locks the state directory dir; the error is a usage error when
// another process has it.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for try := 0; errors.Is(err, unix.EWOULDBLOCK) && try < 10; try++ { // a verb may be reading for a moment
		time.Sleep(50 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, failed(nil, "see mendfs status --state "+dir+", or give another with --state", "the state directory %s is in use by another mendfs", dir)
	}
	return nil, lockless(err, dir)
}

// lockless is the error where flock(2) itself fails, as on network filesystems
// without a lock server.
func lockless(err error, dir string) error {
	return failed(err, "give a directory on a local filesystem with --state",
		"the state directory %s can't be locked, and without that a second mount could use it at the same time", dir)
}

// writeMeta puts meta.json in place, whole and durable. What is there already
// needs no room on the disk.
func (s *stateDir) writeMeta() error {
	text, err := json.MarshalIndent(s.meta, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if old, err := os.ReadFile(s.file(metaFile)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	tmp := s.file(metaFile + ".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, s.file(metaFile))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(s.path)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *stateDir) file(name string) string { return filepath.Join(s.path, name) }

// enough is what the journal takes at once when it needs room, and a bit.
const enough = 1<<20 + 1<<16

// room fails if the journal may find no room for the next repair.
func (s *stateDir) room() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.lock.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: s.path, Err: err}
	}
	if left := st.Bavail * uint64(st.Bsize); st.Blocks > 0 && left < enough { // some network filesystems don't know
		return fmt.Errorf("the disk of %s is full: %d bytes are left, and repairs may need %d", s.path, left, enough)
	}
	return nil
}

// close gives the directory free.
func (s *stateDir) close() error { return s.lock.Close() }

// discard removes a directory that this process has made, for a mount that
// came to nothing: no file was ever served with it.
func (s *stateDir) discard() error {
	if !s.made {
		return nil
	}
	return os.RemoveAll(s.path)
}
