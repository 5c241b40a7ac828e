package mount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
)

// ErrRunning says that a mount runs on the state directory: it has the files
// open and gives the answers itself.
var ErrRunning = errors.New("a mount is running on the state directory")

// Offline answers from the files of a state directory on which no mount runs.
// No mount can start on it until Close.
type Offline struct {
	records
	path string
	meta meta
	lock *os.File

	writable bool // the journal is, and the lock is exclusive
}

// OpenState opens the state directory dir for reading. If a mount is running
// on it the error is ErrRunning: ask control.Dial(dir).
func OpenState(dir string) (*Offline, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m, err := readMeta(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, usage("see mendfs status for those in use", "%s is not a state directory", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, failed(err, "use sudo", "the state directory %s can't be read", dir)
	case err != nil:
		return nil, err
	}
	lock, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, failed(err, "use sudo", "the state directory %s can't be read", dir)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		_ = lock.Close() // only read
		return nil, ErrRunning
	}
	s := &Offline{path: dir, meta: m, lock: lock}
	s.within = openBacking(m)
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openBacking is the backing directory, for looking up names; -1 if it is not
// there now, or another one is, such as what is mounted over it.
func openBacking(m meta) int {
	fd, err := unix.Open(m.Backing, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	id, err := fileid.Of(fd)
	name, failed := fileid.Filesystem(fd)
	if err != nil || failed != nil || id.Key() != m.Root.Key() || name != m.FS {
		_ = unix.Close(fd) // O_PATH
		return -1
	}
	return fd
}

// KnowsNames reports whether the backing directory is there, so that files are
// found, and named, by what they are called now; else it is by what they were
// called when they were last seen.
func (s *Offline) KnowsNames() bool { return s.within >= 0 }

func (s *Offline) open() (err error) {
	s.eventLog = filepath.Join(s.path, eventsFile)
	if s.ledger, err = ledger.View(filepath.Join(s.path, ledgerFile)); err != nil {
		return damaged(err, s.path)
	}
	if s.journal, err = journal.View(filepath.Join(s.path, journalFile)); err != nil {
		return damaged(err, s.path)
	}
	return nil
}

// damaged wraps an error of ledger or journal. The text of those that say what
// is wrong with the file itself names the way out.
func damaged(err error, state string) error {
	next := roomNext(err)
	var store *ledger.StoreError
	var damage *journal.DamageError
	if errors.As(err, &store) || errors.As(err, &damage) || errors.Is(err, journal.ErrForeign) || errors.Is(err, journal.ErrVersion) {
		next = ""
	}
	return failed(err, next, "the records in %s can't be opened", state)
}

// Status is what the records say, with Running false.
func (s *Offline) Status(context.Context) (control.Status, error) {
	status := control.Status{
		Backing: s.meta.Backing, State: s.path, FS: s.meta.FS,
		Semantics: s.meta.Semantics, Simulate: s.meta.Simulate,
	}
	return status, s.count(&status)
}

// Drop forgets the image that a conflict has left.
func (s *Offline) Drop(_ context.Context, id uint64) error {
	if err := s.openToWrite(); err != nil {
		return err
	}
	return dropKept(s.journal, id)
}

// openToWrite opens the journal anew. No other verb reads it then. It may get a
// fresh file, which has to belong to who mounts.
func (s *Offline) openToWrite() error {
	if s.writable {
		return nil
	}
	if err := checkOwned(s.path, os.Geteuid()); err != nil {
		return failed(err, "ask as the user who mounts with it", "the state directory %s can't be changed", s.path)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return failed(err, "try again", "the state directory %s is being read", s.path)
	}
	j, err := journal.Open(filepath.Join(s.path, journalFile), s.meta.FS)
	if err != nil {
		return damaged(err, s.path)
	}
	viewed := s.journal
	s.journal, s.writable = j, true
	return viewed.Shutdown()
}

// Events hands over the lines of the event log. Nothing can be followed where
// nothing runs: that is refused.
func (s *Offline) Events(ctx context.Context, q control.EventQuery, line func([]byte) error) error {
	if q.Follow {
		return failed(nil, "mount it first, or leave out --follow", "no mount is running on %s", s.path)
	}
	return s.records.Events(ctx, q, line)
}

// Close closes the files.
func (s *Offline) Close() error {
	var errs []error
	if s.journal != nil {
		errs = append(errs, s.journal.Shutdown())
	}
	if s.ledger != nil {
		errs = append(errs, s.ledger.Close())
	}
	if s.within >= 0 {
		errs = append(errs, unix.Close(s.within))
	}
	return errors.Join(append(errs, s.lock.Close())...)
}
