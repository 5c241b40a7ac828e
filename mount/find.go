package mount

import (
	"path/filepath"
	"slices"
)

// List is every running mount that this user may know of, by mountpoint: the
// user's own and root's.
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
	return all, nil
}

// Find is the running mount that path lies in. Symbolic links are followed.
func Find(path string) (*Running, error) {
	p, err := lookup(path)
	if err != nil {
		return nil, notThere(err, "path", path)
	}
	defer p.close()
	if p.mount.Type != FSType {
		return nil, usage("give a path in a mount (mendfs status lists them), or --state DIR", "%s does not lie in a mendfs mount", p.path)
	}
	if p.isDead() {
		return nil, failed(nil, "mendfs umount "+p.mount.Mountpoint+", or mount again, which replaces it", "the mount at %s is dead: its daemon is gone", p.mount.Mountpoint)
	}
	all, err := visible()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		// The device number of a mount that has just gone may be this one's.
		if e.Dev == p.mount.Dev && (e.Mountpoint == p.mount.Mountpoint || !liesAt(all, p.mount)) {
			e.Rel = filepath.Clean("./" + p.spot().Inner)
			return &e.Running, nil
		}
	}
	return nil, failed(nil, "ask the user who mounted it, or root", "the mount at %s is not in the list of running mounts", p.mount.Mountpoint)
}

// liesAt reports whether one of the entries is for this very mount, seen from
// here. It is not where the mount is seen from another namespace, or bound.
func liesAt(all []entry, m mountEntry) bool {
	return slices.ContainsFunc(all, func(e entry) bool { return e.Dev == m.Dev && e.Mountpoint == m.Mountpoint })
}
