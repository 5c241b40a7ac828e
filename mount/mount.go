package mount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/fs"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/media/sim"
)

// Mount is a running mount.
type Mount struct {
	config  *config
	backing string
	path    string // the mountpoint
	started time.Time

	state   *stateDir
	entry   *registration
	root    int // the backing directory, out of reach of what is mounted over it
	events  *event.Log
	sim     *sim.Medium // nil if the medium is real
	engine  *recovery.Engine
	fs      *fs.FS
	device  int // /dev/fuse, with the mount at its other end, until server has it; -1
	server  *fuse.Server
	list    poisonList    // nil: the medium keeps none
	watcher *watcher      // nil without a list
	served  chan struct{} // closed when the kernel has ended the FUSE connection
	records

	unmounter *unmounter // nil: this process unmounts itself

	opened []func() error // how to close what was opened, in the order of opening
	failed bool           // New came to nothing
}

// New makes all checks, takes the state directory, finishes repairs that a
// crash interrupted, and mounts. The mount serves when New returns. When New
// refuses its arguments, nothing was changed; a dead mount of ours goes at the
// last moment, and where it hid the reason for a refusal the error says that
// it is gone. Errors are *Error.
func New(o Options) (*Mount, error) {
	c, err := o.parse()
	if err != nil {
		return nil, err
	}
	if d, ok := o.Stderr.(*Daemon); ok {
		if err := d.leaveDirectory(); err != nil {
			return nil, err
		}
	}
	if err := checkFUSE("/dev/fuse", c.AllowOther); err != nil {
		return nil, err
	}
	t, err := findTarget(c)
	if err != nil {
		return nil, err
	}
	defer t.close()
	m := &Mount{config: c, backing: t.backing.path, path: t.mountpoint.path, started: time.Now().UTC(), root: -1, device: -1, served: make(chan struct{})}
	if err := m.start(t); err != nil {
		m.failed = true
		return nil, errors.Join(t.tell(err), news(m.closeAll(), err))
	}
	return m, nil
}

func (m *Mount) start(t *target) error {
	for _, step := range []func(*target) error{
		m.liftFileSize, m.privileges, m.foresee, m.claim, m.openRoot, m.openRecords, m.openEngine, m.uncover, m.attach, m.connect, m.readAhead, m.confine, m.serve, m.watch, m.control,
	} {
		if err := step(t); err != nil {
			return err
		}
	}
	m.notices(t)
	return nil
}

// onClose has f called when the mount ends, before everything opened earlier
// is closed.
func (m *Mount) onClose(f func() error) { m.opened = append(m.opened, f) }

func (m *Mount) close() error { return errors.Join(m.closeAll()...) }

// closeAll closes the last opened first, and returns what each had to say.
func (m *Mount) closeAll() (errs []error) {
	for _, f := range slices.Backward(m.opened) {
		errs = append(errs, f())
	}
	m.opened = nil
	return errs
}

// foresee refuses what claim would refuse, as far as that can be told while a
// dead mount covers the backing directory, and takes the dead mount away.
func (m *Mount) foresee(t *target) error {
	if !t.backing.covered {
		return nil
	}
	err := m.admitted(t, meta{Backing: m.backing}, func(_ *registry, e entry) error { return checkLock(e.State) })
	if err != nil {
		return err
	}
	return m.uncover(t)
}

func (m *Mount) uncover(t *target) error { return t.uncover(m.config) }

// claim takes the state directory and puts the mount on the list of running
// ones.
func (m *Mount) claim(t *target) error {
	if t.backing.isReadOnly() && !m.config.ReadOnly {
		m.config.ReadOnly = true
		m.config.warn("%s is read-only, and so is the mount: repairs have to wait", m.backing)
	}
	want, err := describe(t.backing)
	if err != nil {
		return failed(err, "mount as a user who may read it", "the backing directory %s can't be examined", t.backing.path)
	}
	want.Semantics, want.Simulate = m.config.semantics.Name, m.config.Simulate
	return m.admitted(t, want, func(r *registry, e entry) error {
		if m.entry, err = r.add(e); err != nil {
			return failed(err, "make room in "+r.dir, "the mount can't be put on the list of running ones")
		}
		m.onClose(m.entry.close) // last: who waits for it finds everything closed
		if m.state, err = takeState(e.State, want); err != nil {
			return err
		}
		m.onClose(m.leaveState)
		return nil
	})
}

// admitted calls then if no running mount is in the way, with the list of them
// locked: two that get in each other's way can't start at once.
func (m *Mount) admitted(t *target, want meta, then func(*registry, entry) error) error {
	path, records, err := m.places(t, want)
	if err != nil {
		return err
	}
	registry, err := openRegistry(registryDir())
	if err != nil {
		return err
	}
	lock, err := registry.lock()
	if err != nil {
		return failed(err, "see who holds it with fuser", "the list of running mounts can't be locked")
	}
	defer lock.Close()
	e := entry{
		Running:  Running{Mountpoint: m.path, Backing: m.backing, State: path, FS: want.FS, Pid: os.Getpid()},
		Started:  ownStart(),
		BackedBy: t.backing.spot(),
		At:       t.mountpoint.spot(),
		Records:  records,
	}
	if err := registry.admit(e, t); err != nil {
		return err
	}
	return then(registry, e)
}

// places checks where the mount keeps its own files: the state directory, by
// its real path and its spot, and the event log. The default state directory is
// not known, "", before the backing directory can be examined.
func (m *Mount) places(t *target, want meta) (string, spot, error) {
	if log := m.config.EventLog; log != "" {
		real, _, err := t.locate("event log", log, "give a file elsewhere with --event-log")
		if err != nil {
			return "", spot{}, err
		}
		var st unix.Stat_t
		if unix.Lstat(real, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return "", spot{}, usage("give the file that it leads to with --event-log", "the event log %s is a symbolic link", log)
		}
		m.config.EventLog = real
	}
	if m.config.State == "" && want.FS == "" {
		return "", spot{}, nil
	}
	path := cmp.Or(m.config.State, defaultState(t.backing.path, want))
	real, at, err := t.locate("state directory", path, "give a directory elsewhere with --state")
	if err != nil {
		return "", spot{}, err
	}
	if err := trusted(filepath.Dir(path), os.Geteuid()); err != nil {
		return "", spot{}, usage("mend the ownership and mode of what it names, or give a directory elsewhere with --state", "the state directory %s is not safe from other users: %v", path, err)
	}
	return real, at, checkState(real, want)
}

func (m *Mount) leaveState() error {
	if m.failed {
		return m.state.abandon()
	}
	return m.state.close()
}

// openRoot keeps hold of the backing directory as it is below any mount. An
// ordinary user may not clone mounts, and holds the directory itself.
func (m *Mount) openRoot(t *target) error {
	fd, err := unix.OpenTree(t.backing.fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	switch {
	case err == nil:
		// A mount or umount elsewhere must not reach the clone. What a read
		// does to access times is decided by the clone's options: FUSE leaves it to us.
		attr := unix.MountAttr{
			Propagation: unix.MS_PRIVATE,
			Attr_clr:    unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME,
			Attr_set:    atimeAttr(m.flags(t)),
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil && !errors.Is(err, unix.ENOSYS) { // before 5.12
			_ = unix.Close(fd) // nothing was done with it
			return failed(err, "see dmesg", "the clone of %s can't be given its options", m.backing)
		}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL): // not root; before 5.2; unbindable
		fd, err = unix.Openat(t.backing.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return notThere(err, "backing directory", m.backing)
		}
	default:
		return failed(err, "see dmesg", "the backing directory %s can't be held", m.backing)
	}
	m.root = fd
	m.onClose(func() error { return unix.Close(fd) })
	return nil
}

// Ready is the one line for standard output.
func (m *Mount) Ready() string {
	how := "over-mounted"
	if m.path != m.backing {
		how = "at " + m.path
	}
	parts := []string{how, "semantics " + m.config.semantics.Name}
	if m.config.Simulate != "" {
		parts = append(parts, "simulated medium "+m.config.Simulate)
	}
	if m.config.eager {
		parts = append(parts, "repair eager")
	}
	if m.config.VerifyWrites {
		parts = append(parts, "verify-writes")
	}
	if m.config.protect != fs.ProtectFull {
		parts = append(parts, "protect "+m.config.protect.String())
	}
	if m.config.ReadOnly {
		parts = append(parts, "read-only")
	}
	parts = append(parts, "state "+m.state.path)
	return control.Printable(fmt.Sprintf("mendfs: %s ready (%s)", m.backing, strings.Join(parts, ", ")))
}

// Wait returns when the mount is gone, by Unmount or from outside, and
// everything that belonged to it is closed. Call it once.
func (m *Mount) Wait() error {
	<-m.served
	if err := m.close(); err != nil {
		return failed(err, "look at the state directory "+m.state.path+" before mounting again", "%s was unmounted, but not everything could be closed in order", m.path)
	}
	return nil
}

// Unmount takes the mount away. One that is in use at a MOUNTPOINT of its own is
// detached, with a notice: it lives on for its users, and Wait waits until the
// last is gone. One that covers its backing directory stays, since new users would
// find the unprotected files while old ones go on through the mount: Unmount says so
// and tries again until it is idle or gone.
func (m *Mount) Unmount() error {
	for told := false; ; told = true {
		if m.hasEnded() {
			return nil
		}
		if err := m.onTop(); err != nil {
			return err
		}
		err := m.detachIdle()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if m.path != m.backing {
			m.config.warn("%s is in use: detached, it ends with its last user", m.path)
			return m.detach(true)
		}
		if !told {
			m.config.warn("%s is in use: it is served until its last user is gone; see who that is with fuser -vm %s", m.path, m.path)
		}
		select {
		case <-m.served:
			return nil
		case <-time.After(busyInterval):
		}
	}
}

// busyInterval is how often a mount in use is tried to be unmounted.
const busyInterval = 200 * time.Millisecond

func (m *Mount) hasEnded() bool {
	select {
	case <-m.served:
		return true
	default:
		return false
	}
}

// detachIdle unmounts, and fails with EBUSY if the mount is in use.
func (m *Mount) detachIdle() error {
	return whenIdle(func() error { return m.detach(false) })
}

// onTop fails if something else was mounted over this mount.
func (m *Mount) onTop() error {
	p, err := lookup(m.path)
	if err != nil {
		return notThere(err, "mountpoint", m.path)
	}
	defer p.close()
	if p.mount.Dev != m.entry.Dev && p.isMountRoot() {
		return failed(unix.EBUSY, "umount "+m.path+" first", "%s (%s) is mounted over %s", p.mount.Source, p.mount.Type, m.path)
	}
	return nil
}

func (m *Mount) detach(lazy bool) error {
	away := func(lazy bool) error { return detach(m.path, lazy) }
	if m.unmounter != nil {
		away = m.unmounter.detach
	}
	err := away(lazy)
	if err == nil || errors.Is(err, unix.EBUSY) {
		return err
	}
	if errors.Is(err, unix.EINVAL) {
		all, listed := mounts()
		if listed == nil && slices.ContainsFunc(all, func(e mountEntry) bool { return e.Dev == m.entry.Dev }) {
			return failed(err, "find it with findmnt -t "+FSType+", and umount it there", "the mount is not at %s any more", m.path)
		}
		return nil // somebody else has unmounted it
	}
	return failed(err, "umount -l "+m.path, "%s can't be unmounted", m.path)
}
