package sim

import (
	"maps"
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// storeVersion is the version of the store's format, in its first line.
const storeVersion = 1

// record is one line of the store and one change of the poison: what was
// done can be done again from its records, in order.
type record struct {
	Op      string    `json:"op"`
	Version int       `json:"version,omitempty"` // of the format, in opStart
	ID      uint64    `json:"id,omitempty"`      // of the injection; in opStart the next one to be given
	File    fileid.ID `json:"file,omitzero"`
	Path    string    `json:"path,omitempty"`
	PathB64 []byte    `json:"path_b64,omitempty"` // only in the store: a path that is not UTF-8

	// opInject
	Range ranges.Range   `json:"range,omitzero"`
	Known bool           `json:"known,omitempty"`
	Left  []ranges.Range `json:"left,omitempty"` // what is left of Range, if not all of it

	// opChange, in this order
	Clear []ranges.Range `json:"clear,omitempty"`
	Touch []ranges.Range `json:"touch,omitempty"`
	List  []ranges.Range `json:"list,omitempty"`

	// opInject, opChange: checksums of pages by their offsets
	Sums map[int64]int64 `json:"sums,omitempty"`
}

const (
	opStart  = "start"  // the first line
	opInject = "inject" // poison comes
	opChange = "change" // poison is met, listed, or gone
	opRemove = "remove" // an injection is taken back
)

// apply makes the change that r tells of. The caller holds m.mu.
func (m *Medium) apply(r record) {
	switch r.Op {
	case opStart:
		m.next = max(m.next, r.ID)
	case opInject:
		m.applyInject(r)
	case opRemove:
		if inj := m.injections[r.ID]; inj != nil {
			inj.in.withdraw(inj, m.rules.listUnit)
			delete(m.injections, inj.id)
			m.sweep(inj.in)
		}
	case opChange:
		p := m.files[r.File.Key()]
		if p == nil {
			return
		}
		for _, c := range r.Clear {
			p.clear(c)
		}
		for _, t := range r.Touch {
			p.touched.Add(t)
		}
		for _, l := range r.List {
			p.list(l, m.rules.listUnit)
		}
		p.setSums(r.Sums)
		if len(r.Clear) > 0 {
			m.sweep(p)
		}
	}
}

func (m *Medium) applyInject(r record) {
	key := r.File.Key()
	p := m.files[key]
	if p == nil {
		p = newPoison(r.File, r.Path)
		m.files[key] = p
	}
	inj := &injection{id: r.ID, in: p, path: r.Path, r: r.Range}
	if len(r.Left) == 0 {
		inj.left.Add(r.Range.Widen(ranges.LineSize))
	}
	for _, left := range r.Left {
		inj.left.Add(left)
	}
	for left := range inj.left.All() {
		p.bad.Add(left)
		if r.Known {
			p.list(left, m.rules.listUnit)
		}
	}
	p.path = r.Path
	p.setSums(r.Sums)
	p.injected = append(p.injected, inj)
	m.injections[inj.id] = inj
	m.next = max(m.next, inj.id+1)
	m.epoch.Add(1)
}

// sweep forgets injections of which nothing is left, and with the last one p.
func (m *Medium) sweep(p *poison) {
	kept := p.injected[:0]
	for _, inj := range p.injected {
		if inj.left.Empty() {
			delete(m.injections, inj.id)
			continue
		}
		kept = append(kept, inj)
	}
	p.injected = kept
	if len(kept) == 0 {
		delete(m.files, p.id.Key())
		m.epoch.Add(1)
	}
}

// records are the fewest records from which the poison can be had again.
// The caller holds m.mu.
func (m *Medium) records() []record {
	out := []record{{Op: opStart, Version: storeVersion, ID: m.next}}
	for _, key := range slices.Sorted(maps.Keys(m.files)) {
		p := m.files[key]
		for _, inj := range p.injected {
			out = append(out, record{Op: opInject, ID: inj.id, File: p.id, Path: inj.path, Range: inj.r, Left: inj.left.Slice()})
		}
		out = append(out, record{Op: opChange, File: p.id, Touch: p.touched.Slice(), List: p.listed.Slice(), Sums: p.sums})
	}
	return out
}
