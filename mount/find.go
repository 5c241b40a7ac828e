package mount

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
)

// List is every running mount that this user may know of, by mountpoint: the
// user's own and root's; for root, everybody's.
func List() ([]Running, error) {
	all, err := visible()
	if err != nil {
		return nil, err
	}
	var list []Running
	for _, e := range all {
		list = append(list, e.Running)
	}
	return list, nil
}

// visible is the entries of all registries that this user may read.
func visible() ([]entry, error) {
	var all []entry
	for _, r := range registries() {
		list, err := r.entries()
		if err != nil {
			return nil, failed(err, "remove the file if no mendfs runs", "the list of running mounts can't be read")
		}
		all = append(all, list...)
	}
	all = append(all, usersEntries()...)
	slices.SortStableFunc(all, func(a, b entry) int { return compareMountpoints(a.Running, b.Running) })
	return all, nil
}

// MountPath is what to do about a path that lies in no mount.
const MountPath = "give a path in a mount (mendfs status lists them)"

// Find is the running mount that path lies in. Symbolic links are followed.
// The mount's process has answered a moment ago: a path that leads into a
// mount is looked up by requests to it, which would wait for one that is
// stopped, and couldn't be interrupted.
func Find(path string) (*Running, error) {
	all, err := visible()
	if err != nil {
		return nil, err
	}
	if first, ok := mountAhead(path); ok {
		if _, err := first.served(all); err != nil {
			return nil, err
		}
	}
	p, err := lookup(path)
	if err != nil {
		return nil, notFound(err, path)
	}
	defer p.close()
	if p.mount.Type != FSType {
		return nil, usage(MountPath, "%s does not lie in a mendfs mount", p.path)
	}
	e, err := p.mount.served(all)
	if err != nil {
		return nil, err
	}
	e.Rel = filepath.Clean("./" + p.spot().Inner)
	return &e.Running, nil
}

// notFound is notThere for a path that is not to be made.
func notFound(err error, path string) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return usage("check the spelling", "the path %s does not exist", path)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return failed(err, "ask as a user who may enter it", "the path %s can't be opened", path)
	}
	return notThere(err, "path", path)
}

// served is the entry of the mount m, whose process answers.
func (m mountEntry) served(all []entry) (*entry, error) {
	e := m.listed(all)
	switch {
	case e != nil && !e.hasDied():
		return e, e.awake()
	case e != nil || m.isDead():
		return nil, failed(nil, "mendfs umount "+m.Mountpoint+", or mount again, which replaces it", "the mount at %s is dead: its daemon is gone", m.Mountpoint)
	}
	return nil, failed(nil, "ask as that user, with his XDG_RUNTIME_DIR, or with --state DIR", "the mount at %s by user %d is in no list of running mounts that can be found", m.Mountpoint, m.owner())
}

// listed is the entry of the mount m, which may be seen from another namespace,
// or bound; nil if there is none.
func (m mountEntry) listed(all []entry) *entry {
	bound := -1
	for i, e := range all {
		switch {
		case e.Dev != m.Dev:
		case e.Mountpoint == m.Mountpoint: // the device number of a mount that has just gone may be this one's
			return &all[i]
		case bound < 0:
			bound = i
		}
	}
	if bound < 0 {
		return nil
	}
	return &all[bound]
}

// answerTime is how long a mount's process may take to answer that it is there.
const answerTime = 10 * time.Second

// awake fails if the mount's process does not answer. What else can be wrong
// with asking it is found out by who asks.
func (r Running) awake() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	err := r.Dial().Answers(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, unix.EAGAIN) { // EAGAIN: too many have asked before
		return r.Silent()
	}
	return nil
}

// Silent is the error for a mount whose process does not answer.
func (r Running) Silent() error {
	return failed(nil, "see whether it is stopped (state T): ps -o pid,stat,wchan -p "+itoa(r.Pid), "the mount's daemon (pid %d) at %s does not answer", r.Pid, r.Mountpoint)
}

// Dial is a client for the mount, which talks to nobody but the user who
// mounted.
func (r Running) Dial() *control.Client { return control.DialUser(r.State, r.Owner) }

// mountAhead is the first mendfs mount on the way along path. No request is
// sent to its server: the walk ends at its root. False says that there is none
// as far as the way can be seen.
func mountAhead(path string) (mountEntry, bool) {
	all, err := mounts()
	if err != nil {
		return mountEntry{}, false
	}
	w := way{at: -1}
	defer w.close()
	for err = w.begin(path); err == nil; err = w.step() {
		id, failed := mountID(w.at)
		i := slices.IndexFunc(all, func(m mountEntry) bool { return m.ID == id && m.Type == FSType })
		if failed == nil && i >= 0 {
			return all[i], true
		}
	}
	return mountEntry{}, false // at the end, or something that a lookup has to say better
}

// way goes along a path, one name at a time.
type way struct {
	at    int // O_PATH of what has been reached; -1
	rest  []string
	links int
}

var errWayEnds = errors.New("the end of the path")

// begin goes to where path starts.
func (w *way) begin(path string) error {
	w.rest = append(components(path), w.rest...)
	from := "."
	switch {
	case filepath.IsAbs(path):
		from = "/"
	case w.at >= 0:
		return nil
	}
	fd, err := unix.Open(from, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.close()
	w.at = fd
	return nil
}

// step takes the next name, through symbolic links one after the other.
func (w *way) step() error {
	if len(w.rest) == 0 {
		return errWayEnds
	}
	fd, err := unix.Openat(w.at, w.rest[0], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w.rest = w.rest[1:]
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", target)
	if err != nil { // no link
		w.close()
		w.at = fd
		return nil
	}
	_ = unix.Close(fd) // O_PATH
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	return w.begin(string(target[:n]))
}

func (w *way) close() {
	if w.at >= 0 {
		_ = unix.Close(w.at) // O_PATH
		w.at = -1
	}
}
