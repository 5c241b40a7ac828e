package recovery

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// oracle knows what was last written, and which bytes may be lost.
type oracle struct {
	data []byte      // what was last written
	hurt *ranges.Set // bytes that poison took, as coarsely as the profile loses them

	beneath ranges.Set // what is still poisoned, behind the end of the file too
}

func (o *oracle) write(off int64, b []byte) {
	o.resize(max(int64(len(o.data)), off+int64(len(b))))
	copy(o.data[off:], b)
	o.hurt.Remove(rng(off, int64(len(b))))
}

// stillPoisoned is for latent poison, which no write can see or clear: what lies
// on it may be lost later.
func (o *oracle) stillPoisoned(r *rig, profile string) {
	o.beneath = ranges.Set{}
	for _, in := range r.sim.List() {
		for _, left := range in.Remaining {
			o.beneath.Add(left.Widen(grain(profile, false)))
		}
	}
	o.hurtBeneath(ranges.Between(0, int64(len(o.data))))
}

func (o *oracle) hurtBeneath(r ranges.Range) {
	for bad := range o.beneath.Within(r) {
		o.hurt.Add(bad)
	}
}

func (o *oracle) resize(size int64) {
	old := int64(len(o.data))
	if size <= old {
		o.data = o.data[:size:size]
		o.hurt.Remove(ranges.Between(size, old+pg))
		return
	}
	o.data = append(o.data, make([]byte, size-old)...)
	o.hurtBeneath(ranges.Between(old, size))
}

// grain is the smallest unit that a profile loses.
func grain(profile string, latent bool) int64 {
	if profile == "line" || latent {
		return ranges.LineSize
	}
	return ranges.SectorSize
}

// check compares what was read with what may be read: each byte is what was
// last written, or zero and in the ledger; and only hurt bytes may be lost.
func (o *oracle) check(r *rig, off int64, got []byte) error {
	lost, reinit := r.live()
	for i, b := range got {
		at := rng(off+int64(i), 1)
		inLedger := lost.Overlaps(at) || reinit.Overlaps(at)
		want := o.data[at.Off]
		switch {
		case inLedger && !o.hurt.Overlaps(at):
			return fmt.Errorf("byte %d is in the ledger, but was never lost", at.Off)
		case inLedger && b != 0:
			return fmt.Errorf("byte %d is in the ledger, but reads %#x", at.Off, b)
		case !inLedger && b != want:
			return fmt.Errorf("byte %d reads %#x, want %#x, and the ledger does not have it", at.Off, b, want)
		}
	}
	return nil
}

// TestEngineAgainstOracle runs random operations over every profile: P1, P3, P5.
func TestEngineAgainstOracle(t *testing.T) {
	steps, seeds := 400, 6
	if testing.Short() {
		steps, seeds = 150, 2
	}
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		for n := range seeds {
			seed := rand.Uint64()
			t.Run(fmt.Sprintf("%s/%d", profile, n), func(t *testing.T) {
				t.Parallel()
				runOracle(t, profile, seed, steps)
			})
		}
	}
}

// TestOracleSeeds runs what has found something once: a write behind the end of a file over
// a page known bad, where the tail page in front of it was bad and nobody knew.
func TestOracleSeeds(t *testing.T) {
	runOracle(t, "dax-5.18", 12249466060844149942, 400)
}

func runOracle(t *testing.T, profile string, seed uint64, steps int) {
	random := rand.New(rand.NewPCG(seed, 0))
	size := int64(20000 + random.IntN(60000))
	r := newRig(t, profile, int(size))
	r.verify = seed%2 == 0
	r.start()
	o := &oracle{data: pattern(int(size)), hurt: ranges.Of()}
	for n := range steps {
		what, err := oracleStep(r, o, random, profile)
		o.stillPoisoned(r, profile)
		if err == nil {
			var all []byte
			if size := int64(len(o.data)); n%10 == 0 && size > 0 {
				all = r.read(0, size)
			}
			err = o.check(r, 0, all)
		}
		if err != nil {
			t.Fatalf("seed %d, step %d, %s: %v", seed, n, what, err)
		}
	}
	oracleFinish(t, r, o, seed)
}

// oracleStep does one random operation on the engine and on the oracle.
func oracleStep(r *rig, o *oracle, random *rand.Rand, profile string) (what string, err error) {
	size := int64(len(o.data))
	off := random.Int64N(size + 5000)
	n := 1 + random.Int64N(int64([]int{100, 5000, 20000}[random.IntN(3)]))
	if random.IntN(3) == 0 {
		off, n = off&^(pg-1), (n+pg-1)&^(pg-1)
	}
	at := rng(off, n)
	switch op := random.IntN(22); {
	case op < 5:
		in := at.Intersect(ranges.Between(0, size))
		if in.Empty() {
			return "read nothing", nil
		}
		return fmt.Sprintf("read %v", in), o.check(r, in.Off, r.read(in.Off, in.Len))
	case op < 10:
		b := pattern(int(n) + int(off%251))[off%251:]
		_, err = r.file.Write(b, off, false, Caller{})
		o.write(off, b)
		return fmt.Sprintf("write %v", at), err
	case op < 11:
		o.resize(off)
		return fmt.Sprintf("truncate to %d of %d", off, size), r.file.Truncate(off, Caller{})
	case op < 13:
		mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
		if random.IntN(2) == 0 {
			mode = unix.FALLOC_FL_ZERO_RANGE
			o.resize(max(size, at.End()))
		}
		if in := at.Intersect(ranges.Between(0, int64(len(o.data)))); !in.Empty() {
			o.write(in.Off, make([]byte, in.Len))
		}
		return fmt.Sprintf("fallocate mode %#x %v", mode, at), r.file.Allocate(mode, off, n, Caller{})
	case op < 14:
		o.resize(max(size, at.End()))
		return fmt.Sprintf("fallocate %v", at), r.file.Allocate(0, off, n, Caller{})
	case op < 18:
		latent := random.IntN(2) == 0
		hit := rng(off, 1+random.Int64N(3000)).Intersect(ranges.Between(0, size))
		if hit.Empty() {
			return "poison nothing", nil
		}
		r.poison(hit, latent)
		// Latent poison becomes known, and then loses its sectors: both grains.
		o.hurt.Add(hit.Widen(grain(profile, false)))
		return fmt.Sprintf("poison %v latent=%v", hit, latent), nil
	case op == 19:
		known := r.known()
		if random.IntN(3) == 0 { // and what is none
			known = append(known, rng(random.Int64N(size+pg)&^511, 512))
		}
		r.listing(known...)
		return fmt.Sprintf("detected %v", known), nil
	case op == 20:
		return "reinitialize", r.file.Reinitialize()
	case op < 19:
		return "sync", r.file.Sync(random.IntN(2) == 0)
	}
	r.remount()
	return "remount", nil
}

// oracleFinish overwrites everything that is known, and wants the medium clean.
func oracleFinish(t *testing.T, r *rig, o *oracle, seed uint64) {
	size := int64(len(o.data))
	if size == 0 {
		return
	}
	if err := o.check(r, 0, r.read(0, size)); err != nil {
		t.Fatalf("seed %d, at the end: %v", seed, err)
	}
	for off := int64(0); off < size; off += 3000 { // part pages and whole ones
		b := pattern(int(min(3000, size-off)))
		r.write(off, b)
		o.write(off, b)
	}
	below := r.medium.Open(r.fd)
	b := make([]byte, size)
	for off := int64(0); off < size; off += pg {
		page := b[off:min(off+pg, size)]
		if n, err := below.Pread(page, off); err != nil || n != len(page) {
			t.Fatalf("seed %d: after the overwrite of everything the medium still fails at %d: %d, %v", seed, off, n, err)
		}
	}
	wantBytes(t, fmt.Sprintf("seed %d: the medium", seed), b, o.data)
	lost, reinit := r.live()
	if !lost.Empty() || !reinit.Empty() {
		t.Fatalf("seed %d: the ledger still has lost %v, reinitialized %v", seed, lost, reinit)
	}
}
