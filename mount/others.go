package mount

// otherUsersMount refuses a backing directory that another user's mount has:
// registries are one per user, but the mount table shows everybody's, with the
// backing directory as the source. Mounts in own are judged by the registry.
func otherUsersMount(t *target, own []entry) error {
	all, err := mounts()
	if err != nil {
		return failed(err, "see whether /proc is mounted", "the mount table can't be read")
	}
	listed := map[string]bool{}
	for _, e := range own {
		listed[e.Dev] = true
	}
	for _, e := range all {
		if e.Type != FSType || listed[e.Dev] || !below(e.Source, t.backing.path) && !below(t.backing.path, e.Source) {
			continue
		}
		if p, err := lookup(e.Mountpoint); err == nil { // what can't be asked counts as alive
			dead := p.isDead()
			p.close()
			if dead {
				continue
			}
		}
		return failed(nil, "ask the user who mounted it, or root, to unmount it", "another user's mount at %s has the backing directory %s, which overlaps with %s", e.Mountpoint, e.Source, t.backing.path)
	}
	return nil
}
