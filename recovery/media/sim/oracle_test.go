package sim

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestOracle does random calls on every profile and holds what may be relied
// on against a copy of the bytes: what is read is what was written, a
// poisoned byte never comes, a failure always has poison near, and a restart
// changes nothing.
func TestOracle(t *testing.T) {
	for _, profile := range Profiles() {
		seed := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprintf("%s, seed %d", profile, seed), func(t *testing.T) {
			o := &oracle{bench: newBench(t, profile, 9*page+777), random: rand.New(rand.NewPCG(seed, 0))}
			o.want = bytes.Clone(o.data)
			for i := range 3000 {
				o.step = i
				o.doOne()
			}
			o.endAllPoison()
		})
	}
}

// maxSize keeps the file small enough that poison is met often.
const maxSize = 12 * page

type oracle struct {
	*bench
	random *rand.Rand
	want   []byte
	step   int
}

func (o *oracle) doOne() {
	switch k := o.random.IntN(100); {
	case k < 45:
		o.read(o.anyRange(maxSize))
	case k < 75:
		o.write(o.anyRange(maxSize))
	case k < 80:
		o.truncate(o.random.Int64N(maxSize))
	case k < 86:
		o.allocate(o.anyRange(maxSize), o.random.IntN(4))
	case k < 92:
		if size := int64(len(o.want)); size > 0 && o.bad().Bytes() < 2*page {
			r := ranges.Range{Off: o.random.Int64N(size), Len: 1 + o.random.Int64N(200)}
			r = r.Intersect(ranges.Range{Len: size})
			o.inject(r.Off, r.Len, o.random.IntN(2) == 0)
		}
	case k < 94:
		if list := o.m.List(); len(list) > 0 {
			if err := o.m.Remove(list[o.random.IntN(len(list))].ID); err != nil {
				o.t.Fatal(err)
			}
		}
	case k < 96:
		before := o.m.List()
		o.restart(o.profile())
		if after := o.m.List(); !reflect.DeepEqual(before, after) {
			o.t.Fatalf("step %d: a restart made %v of %v", o.step, after, before)
		}
	default:
		o.salvage()
	}
}

func (o *oracle) profile() string {
	switch {
	case o.m.rules.clearUnit == ranges.LineSize:
		return Line
	case reflect.ValueOf(o.m.rules.write).Pointer() == reflect.ValueOf(writeRefused).Pointer():
		return DAX518
	}
	return DAX
}

// anyRange is aligned often, for that is when writes clear.
func (o *oracle) anyRange(limit int64) ranges.Range {
	unit := []int64{1, 64, 512, page, page}[o.random.IntN(5)]
	off := o.random.Int64N(limit) &^ (unit - 1)
	n := max(unit, o.random.Int64N(3*page)&^(unit-1))
	return ranges.Range{Off: off, Len: min(n, limit-off)}
}

func (o *oracle) bad() *ranges.Set { return ranges.Of(o.poisoned()...) }

func (o *oracle) read(r ranges.Range) {
	bad := o.bad()
	buf := make([]byte, r.Len)
	n, err := o.f.Pread(buf, r.Off)
	got := ranges.Range{Off: r.Off, Len: int64(n)}
	inside := r.Intersect(ranges.Range{Len: int64(len(o.want))})
	if err != nil && (n != 0 || !o.excused(r, err)) {
		o.t.Fatalf("step %d: read %v = %d, %v with poison %v", o.step, r, n, err, bad)
	}
	if err == nil && int64(n) < inside.Len && (n == 0 || !o.excused(r, unix.EIO)) {
		o.t.Fatalf("step %d: read %v is short: %d, with poison %v", o.step, r, n, bad)
	}
	if bad.Overlaps(got) {
		o.t.Fatalf("step %d: read %v brought poisoned bytes: %v", o.step, r, bad)
	}
	if n > 0 && !bytes.Equal(buf[:n], o.want[r.Off:r.Off+int64(n)]) {
		o.t.Fatalf("step %d: read %v brought wrong bytes", o.step, r)
	}
}

// excused reports whether poison explains the errno of a call on r. A file
// of this test is a single extent.
func (o *oracle) excused(r ranges.Range, err error) bool {
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EFAULT) {
		return false
	}
	tailPage := ranges.Page(int64(len(o.want)))
	return o.bad().Overlaps(r.Widen(page)) || o.bad().Overlaps(tailPage)
}

func (o *oracle) write(r ranges.Range) {
	data := make([]byte, r.Len)
	for i := range data {
		data[i] = byte(o.random.Uint32())
	}
	n, err := o.f.Pwrite(data, r.Off, 0)
	if (err != nil || int64(n) < r.Len) && !o.excused(r, unix.EIO) {
		o.t.Fatalf("step %d: write %v = %d, %v with poison %v", o.step, r, n, err, o.bad())
	}
	if n > 0 {
		o.grow(r.Off + int64(n))
		copy(o.want[r.Off:], data[:n])
	}
}

func (o *oracle) truncate(size int64) {
	if err := o.f.Truncate(size); err != nil {
		if !o.excused(ranges.Range{Off: size, Len: 1}, err) {
			o.t.Fatalf("step %d: truncate to %d: %v with poison %v", o.step, size, err, o.bad())
		}
		return
	}
	o.grow(size)
	o.want = o.want[:size]
	if beyond := ranges.Between(roundUp(size, page), maxSize); o.bad().Overlaps(beyond) {
		o.t.Fatalf("step %d: poison past the end: %v", o.step, o.bad())
	}
}

func (o *oracle) allocate(r ranges.Range, mode int) {
	flags := []uint32{0, keepSize, punch, zero}[mode]
	if err := o.f.Allocate(flags, r.Off, r.Len, 0); err != nil {
		if !o.excused(r, err) {
			o.t.Fatalf("step %d: fallocate %#x %v: %v with poison %v", o.step, flags, r, err, o.bad())
		}
		if flags == punch || flags == zero {
			o.mayBeZero(wholeUnits(r, o.m.rules.clearUnit))
			o.mayBeZero(ranges.Between(r.Off, min(r.End(), roundUp(r.Off, o.m.rules.clearUnit))))
		}
		return
	}
	if flags&keepSize == 0 {
		o.grow(r.End())
	}
	if flags == punch || flags == zero {
		if in := r.Intersect(ranges.Range{Len: int64(len(o.want))}); !in.Empty() {
			clear(o.want[in.Off:in.End()])
		}
		if whole := wholeUnits(r, o.m.rules.clearUnit); o.bad().Overlaps(whole) {
			o.t.Fatalf("step %d: fallocate %#x %v leaves poison: %v", o.step, flags, r, o.bad())
		}
	}
}

// mayBeZero takes over what a call that failed has done of r: all or nothing.
func (o *oracle) mayBeZero(r ranges.Range) {
	r = r.Intersect(ranges.Range{Len: int64(len(o.want))})
	if stored := o.below(r.Off, int(r.Len)); bytes.Equal(stored, make([]byte, r.Len)) {
		clear(o.want[r.Off:r.End()])
	}
}

func (o *oracle) grow(size int64) {
	if missing := size - int64(len(o.want)); missing > 0 {
		o.want = append(o.want, make([]byte, missing)...)
	}
}

// salvage must bring all of a page but its poison, and at most the rest of
// its sectors.
func (o *oracle) salvage() {
	r := ranges.Page(o.random.Int64N(maxSize))
	buf := make([]byte, page)
	missing, unit := o.f.Salvage(buf, r.Off)
	lost, bad := ranges.Of(missing...), o.bad()
	for b := range bad.Within(r) {
		if !lost.Contains(b) {
			o.t.Fatalf("step %d: salvage of %v brings poisoned %v", o.step, r, b)
		}
	}
	for _, l := range missing {
		for u := l.Widen(unit); !u.Empty(); u = ranges.Between(u.Off+unit, u.End()) {
			if !bad.Overlaps(ranges.Range{Off: u.Off, Len: unit}) {
				o.t.Fatalf("step %d: salvage of %v by %d gives up %v; poison is %v", o.step, r, unit, l, bad)
			}
		}
	}
	for good := range lost.Gaps(r.Intersect(ranges.Range{Len: int64(len(o.want))})) {
		if !bytes.Equal(buf[good.Off-r.Off:good.End()-r.Off], o.want[good.Off:good.End()]) {
			o.t.Fatalf("step %d: salvage of %v brings wrong bytes in %v", o.step, r, good)
		}
	}
}

// endAllPoison does what an engine does to get rid of it, and reads all.
func (o *oracle) endAllPoison() {
	for off := int64(0); off < int64(len(o.want)); off += page {
		for range 20 { // latent poison must be met first, line by line
			if _, err := o.f.Pread(make([]byte, page), off); err == nil && !o.bad().Overlaps(ranges.Page(off)) {
				break
			}
			if o.profile() == DAX518 {
				o.allocate(ranges.Page(off), 2)
			}
			o.write(ranges.Page(off))
		}
	}
	if !o.bad().Empty() {
		o.t.Fatalf("poison left: %v", o.bad())
	}
	o.read(ranges.Range{Len: int64(len(o.want))})
}
