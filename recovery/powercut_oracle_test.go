//go:build failpoints

package recovery

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// cutOracle knows what one file may hold after a cut. After the daemon's death
// that is what was answered last; after a power cut anything that was answered
// since the last fsync, line by line; in both cases a call that was not answered
// may have been done. The world's lock guards it.
type cutOracle struct {
	name     string
	grain    int64    // what one poisoned line takes with it
	versions [][]byte // what was durable last, and after each call since; never changed
	power    bool     // there was a power cut since the last version

	// pending is the file after the call that is under way, nil if there is none,
	// and at the range that it writes. bad are pages that are known to be bad when
	// it begins: a repair of them is never torn.
	pending []byte
	at      ranges.Range
	bad     *ranges.Set

	// undefined are bytes from under which poison was cleared since the last fsync by
	// calls that met no poison that the engine knew of, and so without an intent: a
	// power cut may leave garbage there.
	undefined *ranges.Set

	// hurt are bytes that may be lost: what poison lies on, and what was lost to it
	// and not written since. since has all that were in hurt since the last fsync.
	hurt, since *ranges.Set

	// under is what the memory holds where bytes were found lost, zero elsewhere. A power
	// cut may take the list of the poison with it: what was lost with its sector can then be had.
	under []byte
}

func newCutOracle(name string, grain int64, data []byte) *cutOracle {
	return &cutOracle{name: name, grain: grain, versions: [][]byte{data}, hurt: ranges.Of(), since: ranges.Of(), bad: ranges.Of(), undefined: ranges.Of()}
}

// gone stands in versions for a byte that is lost: zero, and in the ledger.
const gone = 0xED

func (o *cutOracle) clone() *cutOracle {
	c := *o
	c.versions = slices.Clone(o.versions)
	c.hurt, c.since, c.bad, c.undefined = copySet(o.hurt), copySet(o.since), copySet(o.bad), copySet(o.undefined)
	return &c
}

func copySet(s *ranges.Set) *ranges.Set { return ranges.Of(s.Slice()...) }

// now is what was answered last.
func (o *cutOracle) now() []byte { return o.versions[len(o.versions)-1] }

// begin is in front of a call that leaves the file as after and writes at.
func (o *cutOracle) begin(after []byte, at ranges.Range, bad *ranges.Set) {
	o.pending, o.at, o.bad = after, at, bad
}

// answered is behind it. written are the bytes that can't be lost any more;
// what was written to pages that were known to be bad is durable.
func (o *cutOracle) answered(written ...ranges.Range) {
	after := o.pending
	for v, old := range o.versions {
		o.versions[v] = o.repaired(old, after)
	}
	o.versions = append(o.versions, after)
	for _, w := range written {
		o.hurt.Remove(w)
		for page := range o.bad.Within(w.Widen(ranges.PageSize)) {
			o.since.Remove(page.Intersect(w))
		}
	}
	o.hurt.Remove(ranges.Between(int64(len(after)), 1<<62))
	o.pending, o.at, o.bad = nil, ranges.Range{}, ranges.Of()
}

// repaired is old with what a repair has written durably.
func (o *cutOracle) repaired(old, after []byte) []byte {
	var out []byte
	for page := range o.bad.Within(o.at.Widen(ranges.PageSize)) {
		part := page.Intersect(o.at).Intersect(ranges.Between(0, int64(min(len(old), len(after)))))
		if part.Empty() {
			continue
		}
		if out == nil {
			out = bytes.Clone(old)
		}
		copy(out[part.Off:part.End()], after[part.Off:part.End()])
	}
	if out == nil {
		return old
	}
	return out
}

// synced is behind an fsync.
func (o *cutOracle) synced() {
	o.versions, o.since, o.undefined = [][]byte{o.now()}, copySet(o.hurt), ranges.Of()
}

// struck is behind poison that has come.
func (o *cutOracle) struck(at ranges.Range) {
	hit := at.Widen(o.grain)
	o.hurt.Add(hit)
	o.since.Add(hit)
}

// mayBe are the contents that bytes may come from, the pending one not counted.
func (o *cutOracle) mayBe() [][]byte {
	if o.power {
		return o.versions
	}
	return o.versions[len(o.versions)-1:]
}

func (o *cutOracle) mayBeLost() *ranges.Set {
	if o.power {
		return o.since
	}
	return o.hurt
}

// check compares what was read after a mount, and the ledger's live rows, with
// what may be.
func (o *cutOracle) check(got []byte, lost, reinit *ranges.Set) error {
	from := o.mayBe()
	all := from
	if o.pending != nil {
		all = append(slices.Clone(from), o.pending)
	}
	shortest, longest := len(all[0]), len(all[0])
	for _, c := range all {
		shortest, longest = min(shortest, len(c)), max(longest, len(c))
	}
	if len(got) < shortest || len(got) > longest {
		return fmt.Errorf("%s has %d bytes, want %d to %d", o.name, len(got), shortest, longest)
	}
	size := ranges.Between(0, int64(len(got)))
	for r := range lost.Within(size) {
		switch piece := got[r.Off:r.End()]; {
		case !isZero(piece):
			return fmt.Errorf("%s: %v is lost in the ledger, and is not zero", o.name, r)
		case !o.mayBeLost().Contains(r):
			return fmt.Errorf("%s: not all of %v, which is lost, had to be", o.name, r)
		}
	}
	for i := range got {
		if err := o.checkByte(int64(i), got[i], all, lost, reinit); err != nil {
			return fmt.Errorf("%s (sizes %d to %d): %w", o.name, shortest, longest, err)
		}
	}
	return o.checkWhole(got, from)
}

func (o *cutOracle) checkByte(i int64, b byte, all [][]byte, lost, reinit *ranges.Set) error {
	for n := len(all) - 1; n >= 0; n-- {
		if c := all[n]; i >= int64(len(c)) && b == 0 || i < int64(len(c)) && c[i] == b {
			return nil
		}
	}
	at := rng(i, 1)
	switch {
	case o.returns(i, b):
		return nil
	case b >= mediatest.Garbage && o.power && o.undefined.Overlaps(at):
		return nil
	case b != 0:
		return fmt.Errorf("byte %d reads %#x, want one of %x", i, b, o.column(all, i))
	case !lost.Overlaps(at) && !reinit.Overlaps(at):
		return fmt.Errorf("byte %d is zero, want one of %x, and the ledger does not have it", i, o.column(all, i))
	case !o.mayBeLost().Overlaps(at):
		return fmt.Errorf("byte %d is zero, and did not have to be lost; want one of %x", i, o.column(all, i))
	}
	return nil
}

// returns reports whether b may be byte i, which was lost before the power cut.
func (o *cutOracle) returns(i int64, b byte) bool {
	wasLost := func(c []byte) bool { return i < int64(len(c)) && c[i] == gone }
	return o.power && o.isUnder(i, b) && slices.ContainsFunc(o.versions, wasLost)
}

func (o *cutOracle) isUnder(i int64, b byte) bool {
	return b != 0 && i < int64(len(o.under)) && o.under[i] == b
}

// keepUnder forgets what lay under poison that is gone.
func (o *cutOracle) keepUnder(poison []poisoned) {
	under := make([]byte, len(o.under))
	for _, p := range poison {
		if page := ranges.Page(p.at.Off); page.Off < int64(len(under)) {
			copy(under[page.Off:], o.under[page.Off:min(page.End(), int64(len(under)))])
		}
	}
	o.under = under
}

func (o *cutOracle) column(all [][]byte, i int64) []byte {
	var out []byte
	for _, c := range all {
		if i < int64(len(c)) {
			out = append(out, c[i])
		}
	}
	return out
}

// checkWhole wants of a call under way each page done or not done: those that
// were being repaired, and on the daemon's death all, since one system call writes a
// page (but for a memory of lines, of which it may write some).
func (o *cutOracle) checkWhole(got []byte, from [][]byte) error {
	if o.pending == nil {
		return nil
	}
	for page := ranges.Page(o.at.Off); page.Off < o.at.End(); page = page.Shift(ranges.PageSize) {
		part := page.Intersect(o.at).Intersect(ranges.Between(0, int64(min(len(got), len(o.pending), len(o.now())))))
		if part.Empty() || (o.power || o.grain == ranges.LineSize) && !o.bad.Contains(page) {
			continue
		}
		if o.isPending(got, part) {
			continue
		}
		for i := part.Off; i < part.End(); i++ {
			old := got[i] == 0 && o.mayBeLost().Overlaps(rng(i, 1)) || o.returns(i, got[i]) || got[i] >= mediatest.Garbage && o.power && o.undefined.Overlaps(rng(i, 1))
			for _, c := range from {
				old = old || i < int64(len(c)) && c[i] == got[i] || i >= int64(len(c)) && got[i] == 0
			}
			if !old {
				return fmt.Errorf("%s: page %v is torn: at %d it has %#x of the write under way, elsewhere not", o.name, page, i, got[i])
			}
		}
	}
	return nil
}

// isPending reports whether a part is as the call under way leaves it.
func (o *cutOracle) isPending(got []byte, part ranges.Range) bool {
	for i := part.Off; i < part.End(); i++ {
		if got[i] != o.pending[i] && (got[i] != 0 || !o.mayBeLost().Overlaps(rng(i, 1))) {
			return false
		}
	}
	return true
}

// adopt makes what was found what is there; below is what the memory holds.
func (o *cutOracle) adopt(got []byte, lost, reinit, poison *ranges.Set, below []byte) {
	from := append(slices.Clone(o.mayBe()), o.pending)
	if o.pending == nil {
		from = o.mayBe()
	}
	o.hurt, got = ranges.Of(), bytes.Clone(got)
	under := make([]byte, len(got))
	for _, rows := range []*ranges.Set{lost, reinit} {
		for r := range rows.All() {
			for i := r.Off; i < min(r.End(), int64(len(got))); i++ {
				if got[i] == 0 {
					o.hurt.Add(rng(i, 1))
					if !slices.ContainsFunc(from, func(c []byte) bool { return i >= int64(len(c)) || c[i] == 0 }) {
						got[i] = gone // and not zeroed by a call, with a record that is one too many
					}
					if o.isUnder(i, below[i]) || slices.ContainsFunc(from, func(c []byte) bool { return i < int64(len(c)) && c[i] == below[i] }) {
						under[i] = below[i]
					}
				}
			}
		}
	}
	for p := range poison.All() {
		o.hurt.Add(p.Widen(o.grain))
	}
	if o.power {
		o.versions, o.since, o.undefined = nil, ranges.Of(), ranges.Of()
	}
	for h := range o.hurt.All() {
		o.since.Add(h)
	}
	o.versions, o.under = append(o.versions, got), under
	o.power, o.pending, o.at, o.bad = false, nil, ranges.Range{}, ranges.Of()
}
