package sim

import (
	"maps"
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Known is what is listed of a file.
type Known struct {
	File   fileid.ID
	Path   string         // when last injected into
	Listed []ranges.Range // not to be changed: all callers have the same
}

// Known is the poison that is listed, by file, in the order of their keys: what
// a kernel has in its list of media errors. It looks at no file (see ForgetGone), and of those whose
// list is what it was when asked last, there may be a million ranges, it copies none.
func (m *Medium) Known() []Known {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Known
	for _, key := range slices.Sorted(maps.Keys(m.files)) {
		p := m.files[key]
		if p.listed.Empty() {
			continue
		}
		if p.known == nil {
			p.known = p.listed.Slice()
		}
		out = append(out, Known{p.id, p.path, p.known})
	}
	return out
}

// ForgetGone forgets the poison of files that are known to be gone: their blocks were
// given back.
func (m *Medium) ForgetGone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.files {
		m.forgetGone(p)
	}
}

// forgetGone is called with m.mu held.
func (m *Medium) forgetGone(p *poison) {
	if fileid.Gone(m.root, p.id, p.path) {
		m.commit(record{Op: opChange, File: p.id, Clear: []ranges.Range{everything}})
	}
}
