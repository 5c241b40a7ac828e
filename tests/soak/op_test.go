package soak

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// op is one operation on the files of one worker. Names are relative to the
// worker's directory; one that begins with "!" is a file without a name that is
// still open.
type op struct {
	Verb     string
	Name, To string
	Range    ranges.Range
	OffTo    int64  // copy
	Seed     uint64 // of the data written; for files that lose their name, of the new "!" name
}

// verbs is what there is.
const (
	create      = "create" // must not exist
	reset       = "reset"  // open with O_TRUNC
	read        = "read"
	write       = "write"
	appendTo    = "append" // O_APPEND
	directRead  = "direct-read"
	directWrite = "direct-write"
	mapRead     = "map-read"
	store       = "store"  // through a mapping, with msync
	store2      = "store2" // two stores with a gap, one msync
	truncate    = "truncate"
	punch       = "punch"
	zero        = "zero"
	zeroKeep    = "zero-keep" // KEEP_SIZE
	allocate    = "allocate"
	reserve     = "reserve" // KEEP_SIZE
	rename      = "rename"
	swap        = "swap" // RENAME_EXCHANGE
	link        = "link"
	unlink      = "unlink"
	copyRange   = "copy"
	fsync       = "fsync"
	reopen      = "reopen"
	known       = "poison-known"
	knownKept   = "poison-known-cached" // the page cache keeps what it has
	latent      = "poison-latent"
	latentKept  = "poison-latent-cached"
	check       = "check"
	restart     = "restart" // unmount and mount
	kill        = "kill"    // kill -9 and mount
)

// String is a line of a log; parse reads it.
func (o op) String() string {
	name := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	return fmt.Sprintf("%s %s %s %d +%d at %d seed %d", o.Verb, name(o.Name), name(o.To), o.Range.Off, o.Range.Len, o.OffTo, o.Seed)
}

func parse(line string) (op, error) {
	var o op
	_, err := fmt.Sscanf(line, "%s %s %s %d +%d at %d seed %d", &o.Verb, &o.Name, &o.To, &o.Range.Off, &o.Range.Len, &o.OffTo, &o.Seed)
	if err != nil {
		return op{}, fmt.Errorf("the operation %q: %w", line, err)
	}
	o.Name, o.To = strings.TrimPrefix(o.Name, "-"), strings.TrimPrefix(o.To, "-")
	return o, nil
}

// orphan is the name under which a file without one is known from then on.
func (o op) orphan() string { return fmt.Sprint("!", o.Seed) }

// isPoison reports whether the operation hurts the medium.
func (o op) isPoison() bool { return strings.HasPrefix(o.Verb, "poison") }

// isMapped reports whether the operation goes through a mapping.
func (o op) isMapped() bool { return o.Verb == mapRead || o.Verb == store || o.Verb == store2 }

// stores is the ranges that a store or store2 writes.
func (o op) stores() []ranges.Range {
	gap := ranges.LineSize + int64(o.Seed%100) // mendfs takes fewer zeros for the application's
	if o.Verb == store || o.Range.Len < gap+2 {
		return []ranges.Range{o.Range}
	}
	first := (o.Range.Len - gap) / 2
	return []ranges.Range{{Off: o.Range.Off, Len: first}, ranges.Between(o.Range.Off+first+gap, o.Range.End())}
}

// noise has no zeros, so that a zero that is read is a lost byte, or one that was
// never written.
var noise = func() []byte {
	random := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 8<<20)
	for i := range b {
		b[i] = byte(1 + random.IntN(255))
	}
	return b
}()

// data is what the operation writes into r.
func (o op) data(r ranges.Range) []byte {
	at := int64(o.Seed%(4<<20)) + r.Off - o.Range.Off
	return noise[at : at+r.Len]
}
