package harness

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Storm does random things to one file of a mount, and knows byte by byte what
// the file has to hold afterwards.
type Storm struct {
	t      testing.TB
	m      *Mount
	rel    string
	random *rand.Rand
	poison func(Range) Range // poisons a range of the file, and returns what that may cost
	want   []byte
	gone   *ranges.Set // what may be lost
	log    []string
}

// most is the largest size of the file.
const most = 48 * Page

// NewStorm is a storm over a new file of up to 48 pages, the same one for the
// same seed. poison poisons a range of the file and returns the bytes that may
// be lost by that.
func NewStorm(t testing.TB, m *Mount, rel string, seed uint64, poison func(Range) Range) *Storm {
	t.Helper()
	s := &Storm{t: t, m: m, rel: rel, random: rand.New(rand.NewPCG(seed, 2)), poison: poison, gone: ranges.Of()}
	s.want = m.File(rel, seed, 1+s.random.IntN(most))
	s.log = []string{fmt.Sprintf("seed %d: %d bytes", seed, len(s.want))}
	return s
}

// Rage does n random things and checks the file now and then, and at the end.
// It stops at the first wrong byte and tells how it came to it.
func (s *Storm) Rage(n int) {
	s.t.Helper()
	for i := range n {
		s.step()
		if i%8 == 7 {
			s.check()
		}
		if s.t.Failed() {
			s.t.Fatalf("it came so:\n%s", s.log)
		}
	}
	s.check()
	if s.t.Failed() {
		s.t.Fatalf("it came so:\n%s", s.log)
	}
}

// step does one thing. Each has a good chance to touch the page at the end.
func (s *Storm) step() {
	s.t.Helper()
	size := int64(len(s.want))
	switch r := s.somewhere(most); s.random.IntN(9) {
	case 0, 1, 2:
		if r = r.Intersect(Range{Len: size}); !r.Empty() {
			s.note("poison", r)
			s.gone.Add(s.poison(r))
		}
	case 3:
		s.write(r.Intersect(Range{Len: size}))
	case 4:
		s.write(r.Widen(Page).Intersect(Range{Len: most}))
	case 5:
		s.write(Range{Off: size, Len: min(r.Len, most-size)})
	case 6:
		s.truncate(r.Off)
	case 7:
		s.allocate("zero range", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, r)
	case 8:
		s.allocate("punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r)
	}
}

// somewhere is a range that is not empty: of some bytes, of some lines, or of some pages.
func (s *Storm) somewhere(below int64) Range {
	size := int64(len(s.want))
	off := s.random.Int64N(below)
	if near := s.random.IntN(3); near == 0 && size > 0 { // at the end of the file
		off = max(0, size-1-s.random.Int64N(Page))
	}
	length := 1 + s.random.Int64N([]int64{8, 300, 3 * Page}[s.random.IntN(3)])
	return Range{Off: off, Len: min(length, below-off)}
}

func (s *Storm) note(verb string, r Range) { s.log = append(s.log, fmt.Sprint(verb, " ", r)) }

func (s *Storm) write(r Range) {
	s.t.Helper()
	if r.Empty() {
		return
	}
	s.note("write", r)
	s.want = s.m.Overwrite(s.rel, s.want, Pattern(s.random.Uint64(), int(r.Len)), r.Off)
	s.gone.Remove(r)
}

func (s *Storm) truncate(size int64) {
	s.t.Helper()
	s.note("truncate", Range{Off: size})
	if err := os.Truncate(s.m.Path(s.rel), size); err != nil {
		s.t.Error(err)
	}
	old := int64(len(s.want))
	s.want = append(s.want[:min(size, old):min(size, old)], make([]byte, max(0, size-old))...)
	s.gone.Remove(ranges.Between(size, most))
}

func (s *Storm) allocate(name string, mode uint32, r Range) {
	s.t.Helper()
	s.note(name, r)
	f, err := os.OpenFile(s.m.Path(s.rel), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), mode, r.Off, r.Len); err != nil {
		s.t.Errorf("%s %v: %v", name, r, err)
	}
	r = r.Intersect(Range{Len: int64(len(s.want))})
	if !r.Empty() {
		s.want = Lay(s.want, make([]byte, r.Len), r.Off)
	}
	s.gone.Remove(r)
}

func (s *Storm) check() {
	s.t.Helper()
	s.log = append(s.log, "check")
	s.m.Drop(s.rel)
	s.m.CheckWithin(s.rel, s.want, s.gone)
}
