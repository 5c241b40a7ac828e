package soak

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/mendfs/mendfs/recovery/ranges"
)

const (
	small = 48 * ranges.PageSize  // how large files grow
	large = 600 * ranges.PageSize // one does: reads of more than an extent of the medium
)

// generator makes operations, the same ones for the same seed and the same
// oracle. It looks at names and sizes only.
type generator struct {
	random *rand.Rand
	oracle *oracle
	seeds  uint64
}

func newGenerator(seed, worker uint64, o *oracle) *generator {
	return &generator{random: rand.New(rand.NewPCG(seed, worker)), oracle: o}
}

// weights is how often what is done, in parts of their sum.
var weights = []struct {
	verb  string
	parts int
}{
	{read, 160}, {write, 200}, {appendTo, 40}, {directRead, 40}, {directWrite, 50}, {mapRead, 50}, {store, 60}, {store2, 20},
	{truncate, 40}, {reset, 3}, {punch, 35}, {zero, 20}, {zeroKeep, 20}, {allocate, 15}, {reserve, 10},
	{create, 8}, {rename, 14}, {swap, 4}, {link, 8}, {unlink, 8}, {copyRange, 30}, {fsync, 20}, {reopen, 15},
	{known, 45}, {knownKept, 10}, {latent, 35}, {latentKept, 10}, {check, 30},
}

var allParts = func() (sum int) {
	for _, w := range weights {
		sum += w.parts
	}
	return sum
}()

// next is the next operation.
func (g *generator) next() op {
	n := g.random.IntN(allParts)
	for _, w := range weights {
		if n -= w.parts; n < 0 {
			return g.make(w.verb)
		}
	}
	panic("the weights do not add up")
}

func (g *generator) make(verb string) op {
	g.seeds++
	o := op{Verb: verb, Seed: g.seeds<<20 | g.random.Uint64N(1<<20)}
	switch verb {
	case create:
		o.Name = g.anyName()
		return o
	case rename, link, swap:
		o.Name, o.To = g.anyName(), g.anyName()
		if name := g.existing(false); name != "" && g.random.IntN(4) > 0 {
			o.Name = name
		}
		return o
	case unlink:
		o.Name = g.anyName()
		return o
	}
	needsPath := o.isPoison() || verb == appendTo || verb == reset || verb == directRead || verb == directWrite
	if o.Name = g.existing(!needsPath); o.Name == "" {
		return op{Verb: create, Name: g.anyName(), Seed: o.Seed}
	}
	g.place(&o)
	return o
}

// place chooses where in the file.
func (g *generator) place(o *op) {
	f := g.oracle.files[o.Name]
	most := limit(o.Name)
	o.Range = g.somewhere(f.size(), most)
	inFile := o.Range.Intersect(f.whole())
	switch o.Verb {
	case appendTo:
		o.Range = ranges.Range{Len: min(o.Range.Len, max(1, most-f.size()))}
	case directRead, directWrite:
		o.Range = o.Range.Widen(ranges.PageSize)
	case mapRead, store, store2, known, knownKept, latent, latentKept:
		if inFile.Empty() { // nothing is there: read instead
			o.Verb = read
			return
		}
		if o.isPoison() {
			inFile.Len = min(inFile.Len, 1+g.random.Int64N(2000))
		}
		o.Range = inFile
	case copyRange:
		o.To = g.existing(true)
		to := limit(o.To)
		o.OffTo = g.somewhere(g.oracle.files[o.To].size(), to).Off
		o.Range.Len = max(1, min(o.Range.Len, to-o.OffTo))
	}
}

// somewhere is a range that is not empty: of some bytes, some lines or some
// pages, often at the end of the file, often of whole pages.
func (g *generator) somewhere(size, most int64) ranges.Range {
	size = min(size, most) // files move to names with a smaller limit
	off := g.random.Int64N(most)
	if size > 0 && g.random.IntN(3) > 0 {
		off = g.random.Int64N(size)
	}
	if size > 0 && g.random.IntN(4) == 0 {
		off = max(0, size-1-g.random.Int64N(ranges.PageSize))
	}
	length := 1 + g.random.Int64N([]int64{8, 300, 3 * ranges.PageSize, most / 2}[min(3, g.random.IntN(9)/2)])
	r := ranges.Range{Off: off, Len: min(length, most-off)}
	if g.random.IntN(3) == 0 {
		r = r.Widen([]int64{ranges.LineSize, ranges.SectorSize, ranges.PageSize}[g.random.IntN(3)])
	}
	return r
}

// limit is how large a file of that name grows; names move, and so do the sizes.
func limit(name string) int64 {
	if name == "a/f0" {
		return large
	}
	return small
}

// anyName is one of all that there may be.
func (g *generator) anyName() string {
	n := g.random.IntN(12)
	return fmt.Sprintf("%s/f%d", []string{"a", "b"}[n%2], n)
}

// existing is the name of a file that is there, "" if there is none.
func (g *generator) existing(orphans bool) string {
	var names []string
	for name := range g.oracle.files {
		if orphans || name[0] != '!' {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return names[g.random.IntN(len(names))]
}
