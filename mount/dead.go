package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A dead mount of ours hides the directory that is to be checked, and yet must
// stay until all that can be checked has been: it keeps programs away from the
// unprotected files. So a place is looked at through the mount table first,
// which says what the dead mount covers.

// look finds the directory at path, also if a dead mount of ours covers it:
// the place is then the covered one in all but its descriptor.
func look(path, what string) (*place, error) {
	p, err := lookup(path)
	if err != nil {
		return nil, notThere(err, what, path)
	}
	if err = p.endHanging(); err != nil {
		p.close()
		return nil, err
	}
	if p.isDead() {
		err = p.lookBelow()
	} else if err = p.checkDir(); err != nil {
		err = notThere(err, what, path)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// lookBelow turns the root of a dead mount into the place that it covers.
func (p *place) lookBelow() error {
	if p.mount.Type != FSType || !p.isMountRoot() {
		return failed(unix.ENOTCONN, "umount "+p.mount.Mountpoint, "%s is in a dead mount of type %s", p.path, p.mount.Type)
	}
	all, err := mounts()
	if err != nil {
		return failed(err, "see whether /proc is mounted", "the mount table can't be read")
	}
	byID := map[int]mountEntry{}
	for _, e := range all {
		byID[e.ID] = e
	}
	for p.mount.Type == FSType && p.isMountRoot() { // dead ones may lie upon each other
		parent, ok := byID[p.mount.Parent]
		if !ok {
			return failed(nil, "mendfs umount "+p.path, "what the dead mount at %s covers can't be seen from here", p.path)
		}
		p.mount, p.covered = parent, true
	}
	return nil
}

// uncover detaches the dead mount from the mountpoint, if one is there.
func (t *target) uncover(c *config) error {
	if !t.mountpoint.covered {
		return nil
	}
	path := t.mountpoint.path
	p, err := lookup(path)
	for err == nil && p.isDead() && p.mount.Type == FSType && p.isMountRoot() {
		p.close()
		if err := detach(path, true); err != nil {
			return failed(err, "umount -l "+path, "the dead mount at %s can't be detached", path)
		}
		t.uncovered = true
		p, err = lookup(path)
	}
	if err != nil {
		return notThere(err, "mountpoint", path)
	}
	if t.uncovered {
		c.warn("detached the dead mount at %s (its daemon was gone)", path)
	}
	return t.swap(p)
}

// swap puts p, which can be opened, in place of the covered mountpoint.
func (t *target) swap(p *place) error {
	err := p.checkDir()
	if err == nil && p.spot() != t.mountpoint.spot() {
		err = errors.New("another directory is there now")
	}
	if err != nil {
		p.close()
		return failed(err, "see what is there, and mount again", "%s can't be mounted on", t.mountpoint.path)
	}
	t.mountpoint.close()
	if t.overMounted() {
		t.backing = p
	}
	t.mountpoint = p
	return nil
}

// tell adds to an error of New what has been changed all the same.
func (t *target) tell(err error) error {
	var e *Error
	if !t.uncovered || !errors.As(err, &e) {
		return err
	}
	return &Error{
		Exit: e.Exit, Next: e.Next, Err: &Error{Msg: e.Msg, Err: e.Err},
		Msg: fmt.Sprintf("the dead mount at %s was detached, and nothing protects the files there now", t.mountpoint.path),
	}
}
