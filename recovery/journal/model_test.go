package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const (
	testPath = "journal"
	testFS   = "00112233-4455-6677-8899-aabbccddeeff"
)

// model is what a journal is to its callers, as plain maps.
type model struct {
	open, kept map[uint64]Intent
	images     map[string]map[int64]Saved
}

func newModel() *model {
	return &model{map[uint64]Intent{}, map[uint64]Intent{}, map[string]map[int64]Saved{}}
}

func (m *model) String() string {
	byID := func(a, b Intent) int { return cmp.Compare(a.ID, b.ID) }
	var all []Saved
	for _, key := range slices.Sorted(maps.Keys(m.images)) {
		for _, page := range slices.Sorted(maps.Keys(m.images[key])) {
			all = append(all, m.images[key][page])
		}
	}
	return dumpOf(slices.SortedFunc(maps.Values(m.open), byID), slices.SortedFunc(maps.Values(m.kept), byID), all)
}

// rounds is how many of n rounds to make: a quarter, unless MENDFS_FULL=1.
func rounds(n int) int {
	if os.Getenv("MENDFS_FULL") == "1" {
		return n
	}
	return max(1, n/4)
}

// some are every fourth of n places from one on that the log names, or all of them
// with MENDFS_FULL=1.
func some(t *testing.T, n int) iter.Seq[int] {
	step := n / rounds(n)
	first := rand.IntN(step)
	t.Logf("from %d on, each %d", first, step)
	return func(yield func(int) bool) {
		for at := first; at < n && yield(at); at += step {
		}
	}
}

// dump is everything a journal has to say, as text.
func dump(t *testing.T, j *Journal) string {
	t.Helper()
	var all []Saved
	for s, err := range j.Images(false) {
		if err != nil {
			t.Fatal(err)
		}
		if !j.Pages(s.File.Key()).Contains(ranges.Page(s.Page)) {
			t.Fatalf("page %d has an image and is not in Pages", s.Page)
		}
		for range 2 { // the second may come from memory
			im, ok, err := j.Image(s.File.Key(), s.Page)
			if err != nil || !ok || !reflect.DeepEqual(im, s.Image) {
				t.Fatalf("page %d has an image, and Image says %v, %v, %.200v", s.Page, ok, err, im)
			}
		}
		all = append(all, s)
	}
	return dumpOf(j.Intents(), j.Kept(), all)
}

func dumpOf(open, kept []Intent, images []Saved) string {
	var b bytes.Buffer
	for _, list := range [][]Intent{open, kept} {
		fmt.Fprintln(&b, len(list), "intents")
		for _, in := range list {
			sum := crc32.ChecksumIEEE(in.Image)
			hasImage := in.Image != nil
			in.Image = nil
			fmt.Fprintf(&b, "%+v image %v %x\n", in, hasImage, sum)
		}
	}
	for _, s := range images {
		fmt.Fprintf(&b, "image %s %q %d %v %v %x\n", s.File.Key(), s.Path, s.Page, s.Missing, s.Pending, crc32.ChecksumIEEE(s.Data))
	}
	return b.String()
}

// driver makes random calls of a journal and of the model at once.
type driver struct {
	t       *testing.T
	rng     *rand.Rand
	d       *memDisk
	j       *Journal
	m       *model
	history []string        // the model after each record
	durable int             // index in history: never to be lost
	given   map[uint64]bool // IDs
	closed  map[uint64]bool // not yet returned by a Checkpoint
}

func newDriver(t *testing.T, seed uint64) *driver {
	v := &driver{t: t, rng: rand.New(rand.NewPCG(seed, 2)), d: newMemDisk(seed), m: newModel(),
		given: map[uint64]bool{}, closed: map[uint64]bool{}}
	v.note()
	return v
}

// start opens the journal, as a new process.
func (v *driver) start() error {
	j, err := open(v.d, testPath, testFS)
	if err != nil {
		return err
	}
	v.j = j
	j.compactAt = 40 << 10
	return nil
}

func (v *driver) note() { v.history = append(v.history, v.m.String()) }

// page is page-shaped random bytes.
func (v *driver) page() []byte {
	b := make([]byte, ranges.PageSize)
	for i := 0; i < len(b); i += 64 {
		b[i] = byte(v.rng.Uint32())
	}
	return b
}

func (v *driver) file() fileid.ID {
	return fileid.ID{Ino: uint64(1 + v.rng.IntN(3)), Btime: -5, Handle: "1:00ff"}
}

func (v *driver) ranges() []ranges.Range {
	var rs []ranges.Range
	for range v.rng.IntN(3) {
		rs = append(rs, ranges.Range{Off: v.rng.Int64N(1 << 40), Len: 1 + v.rng.Int64N(100)})
	}
	return rs
}

func (v *driver) intent() *Intent {
	in := &Intent{FS: testFS, File: v.file(), Path: "a\xffb", Range: ranges.Page(v.rng.Int64N(1 << 40)),
		Size: v.rng.Int64(), End: v.rng.Int64(), Mtime: -v.rng.Int64(), Ctime: v.rng.Int64(), RestoreMtime: v.rng.IntN(2) == 0,
		Boot: "boot", Missing: v.ranges(), Lost: v.ranges(), Overwritten: v.ranges(), Time: v.rng.Int64()}
	if v.rng.IntN(2) == 0 {
		in.Image = v.page()
		return in
	}
	in.Range.Len *= 1 + v.rng.Int64N(MaxPages)
	return in
}

// call is one random call. Its error is what the journal said.
func (v *driver) call() error {
	switch n := v.rng.IntN(20); {
	case n < 6:
		return v.begin()
	case n < 7:
		return v.punch()
	case n < 10:
		return v.close()
	case n < 12:
		return v.keep()
	case n < 13:
		return v.drop()
	case n < 16:
		return v.save()
	case n < 18:
		return v.clear()
	case n < 19:
		return v.synced(v.j.Sync())
	default:
		return v.checkpoint()
	}
}

// synced is called after a durable call.
func (v *driver) synced(err error) error {
	if err == nil {
		v.durable = len(v.history) - 1
	}
	return err
}

func (v *driver) begin() error {
	var ins []*Intent
	for range 1 + v.rng.IntN(3) {
		ins = append(ins, v.intent())
	}
	err := v.j.Begin(ins...)
	for _, in := range ins {
		if in.ID == 0 {
			continue
		}
		if v.given[in.ID] {
			v.t.Fatalf("intent ID %d was given twice", in.ID)
		}
		v.given[in.ID] = true
		v.m.open[in.ID] = *in
		v.note()
	}
	if err != nil { // they may be there after a crash, but are not in this process
		for _, in := range ins {
			delete(v.m.open, in.ID)
		}
		v.note()
	}
	return v.synced(err)
}

// any is a random one of the intents, or nothing.
func (v *driver) any(from map[uint64]Intent) (Intent, bool) {
	if len(from) == 0 {
		return Intent{}, false
	}
	ids := slices.Sorted(maps.Keys(from))
	return from[ids[v.rng.IntN(len(ids))]], true
}

func (v *driver) punch() error {
	in, ok := v.any(v.m.open)
	if !ok {
		if err := v.j.Punching(1, 1); !errors.Is(err, ErrNoIntent) {
			v.t.Fatalf("Punching of an intent that is not open: %v", err)
		}
		return nil
	}
	in.Punched = v.rng.Int64()
	if v.rng.IntN(2) == 0 {
		in.Ctime = v.rng.Int64()
		v.m.open[in.ID] = in
		v.note()
		return v.synced(v.j.Zeroing(in.ID, in.Punched, in.Ctime))
	}
	v.m.open[in.ID] = in
	v.note()
	return v.synced(v.j.Punching(in.ID, in.Punched))
}

func (v *driver) close() error {
	var ids []uint64
	for range 1 + v.rng.IntN(3) {
		if in, ok := v.any(v.m.open); ok {
			delete(v.m.open, in.ID)
			v.closed[in.ID] = true
			ids = append(ids, in.ID)
		}
	}
	v.note()
	return v.j.Close(ids...)
}

func (v *driver) keep() error {
	in, ok := v.any(v.m.open)
	if !ok {
		in = *v.intent()
	}
	in.Path = "kept"
	err := v.j.Keep(&in)
	if in.ID == 0 {
		return err // refused before it had an ID
	}
	v.given[in.ID] = true
	delete(v.m.open, in.ID)
	v.m.kept[in.ID] = in
	v.note()
	return v.synced(err)
}

func (v *driver) drop() error {
	in, ok := v.any(v.m.kept)
	if !ok {
		return nil
	}
	delete(v.m.kept, in.ID)
	v.note()
	return v.j.Drop(in.ID)
}

func (v *driver) save() error {
	s := Saved{File: v.file(), Path: "p\xfe", Image: Image{Page: v.rng.Int64N(20) * ranges.PageSize,
		Data: v.page(), Missing: v.ranges(), Pending: v.rng.IntN(3) == 0}}
	key := s.File.Key()
	err := v.j.SaveImage(s.File, s.Path, s.Image)
	if v.m.images[key] == nil {
		v.m.images[key] = map[int64]Saved{}
	}
	v.m.images[key][s.Page] = s
	v.note()
	if s.Pending {
		return v.synced(err)
	}
	return err
}

func (v *driver) clear() error {
	key := v.file().Key()
	r := ranges.Range{Off: v.rng.Int64N(20 * ranges.PageSize), Len: v.rng.Int64N(5 * ranges.PageSize)}
	if v.rng.IntN(5) == 0 {
		r.Len = 1<<63 - 1 // to the end of the file, and beyond
	}
	for page := range v.m.images[key] {
		if page+ranges.PageSize > r.Off && page < r.Off+min(r.Len, 1<<50) && r.Len > 0 {
			delete(v.m.images[key], page)
		}
	}
	v.note()
	return v.j.DropImages(key, r)
}

func (v *driver) checkpoint() error {
	ids, err := v.j.Checkpoint()
	for _, id := range ids {
		if _, open := v.m.open[id]; open {
			v.t.Fatalf("Checkpoint returned the open intent %d", id)
		}
		delete(v.closed, id)
	}
	if err == nil && len(v.closed) > 0 {
		v.t.Fatalf("Checkpoint did not return %v", slices.Sorted(maps.Keys(v.closed)))
	}
	return v.synced(err)
}
