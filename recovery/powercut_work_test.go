//go:build failpoints

package recovery

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// worker does random calls on one file, one at a time.
type worker struct {
	*world
	file   *worldFile
	oracle *cutOracle
	others []int // files that it may copy to
	random *rand.Rand
}

// largest is the size up to which files grow.
const largest = 14 * pg

// call does one random call and tells what it was.
func (k *worker) call() (string, error) {
	switch op := k.random.IntN(32); {
	case op < 7:
		return k.write(k.somewhere(2000))
	case op < 10:
		at := k.somewhere(3 * pg)
		return k.write(rng(at.Off&^(pg-1), (at.Len+pg-1)&^(pg-1)))
	case op < 12:
		return k.write(k.somewhere(4 * pg))
	case op < 15:
		return k.writeBack(ranges.Page(k.somewhere(1).Off))
	case op < 17:
		return k.truncate(k.somewhere(1).Off)
	case op < 20:
		return k.zero(k.somewhere(3 * pg))
	case op < 22:
		return k.sync()
	case op < 25:
		return k.read(k.somewhere(3 * pg))
	case op < 26 && len(k.others) > 0:
		return k.copyTo(k.others[k.random.IntN(len(k.others))], k.somewhere(2*pg))
	case op < 27:
		return "flush", k.flush()
	}
	return k.strike()
}

// somewhere is a range of at most n bytes, mostly where there is poison, the
// tail page more often than others.
func (k *worker) somewhere(n int64) ranges.Range {
	size := int64(len(k.oracle.now()))
	off := k.random.Int64N(size + 2*pg)
	switch hurt := k.oracle.hurt.Slice(); {
	case k.random.IntN(5) == 0:
		off = max(0, size-k.random.Int64N(pg))
	case len(hurt) > 0 && k.random.IntN(3) > 0:
		off = max(0, hurt[k.random.IntN(len(hurt))].Off-k.random.Int64N(pg))
	}
	off = min(off, largest-1)
	return rng(off, 1+k.random.Int64N(min(n, largest-off)))
}

// fresh is data that nothing else has: neither zero nor garbage nor gone.
func (k *worker) fresh(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + k.random.IntN(200))
	}
	return b
}

// begin tells the oracle of a call that leaves the file as after and writes at.
func (k *worker) begin(after []byte, at ranges.Range) {
	bad := ranges.Of()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.medium.poisonOf(k.file.fd) {
		if page := ranges.Page(p.at.Off); !at.Empty() && !p.latent && k.file.knowsBad(page) {
			bad.Add(page)
		}
	}
	k.oracle.begin(after, at, bad)
}

// end is behind a call that was answered.
func (k *worker) end(err error, written ...ranges.Range) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.oracle.answered(written...)
		for _, p := range k.medium.poisonOf(k.file.fd) { // latent poison stays under a write
			k.oracle.struck(p.at)
		}
	}
	return err
}

func (k *worker) now() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.oracle.now()
}

func (k *worker) write(at ranges.Range) (string, error) {
	b := k.fresh(at.Len)
	k.begin(lay(bytes.Clone(k.now()), b, at.Off), at)
	n, err := k.file.Write(b, at.Off, false, Caller{})
	if err == nil && int64(n) < at.Len {
		err = fmt.Errorf("it wrote %d", n)
	}
	return fmt.Sprintf("write %v", at), k.end(err, at)
}

// writeBack is what the kernel does with a page that a program has mapped and
// changed in places: all of it is written, also what is zero since it is lost.
func (k *worker) writeBack(page ranges.Range) (string, error) {
	what := fmt.Sprintf("write back %v", page)
	in := page.Intersect(ranges.Between(0, int64(len(k.now()))))
	if in.Empty() {
		return what + ": nothing", nil
	}
	b := make([]byte, in.Len)
	if n, err := k.file.Read(b, in.Off, Caller{}); err != nil || int64(n) != in.Len {
		return what, fmt.Errorf("reading it: %d, %v", n, err)
	}
	for range 1 + k.random.IntN(3) {
		copy(b[k.random.Int64N(in.Len):], k.fresh(1+k.random.Int64N(200)))
	}
	written := nonZero(b, in.Off)
	after := bytes.Clone(k.now())
	for i := range b {
		if lost := after[in.Off+int64(i)] == gone && b[i] == 0; !lost || ranges.Of(written...).Overlaps(rng(in.Off+int64(i), 1)) {
			after[in.Off+int64(i)] = b[i]
		}
	}
	k.begin(after, in)
	n, err := k.file.Write(b, in.Off, true, Caller{})
	if err == nil && int64(n) < in.Len {
		err = fmt.Errorf("it wrote %d", n)
	}
	return what, k.end(err, written...)
}

func (k *worker) truncate(size int64) (string, error) {
	old := k.now()
	after := make([]byte, size)
	copy(after, old)
	k.begin(after, ranges.Range{})
	return fmt.Sprintf("truncate to %d of %d", size, len(old)), k.end(k.file.Truncate(size, Caller{}))
}

// zero punches a hole or zeros a range.
func (k *worker) zero(at ranges.Range) (string, error) {
	after := bytes.Clone(k.now())
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if k.random.IntN(2) == 0 {
		mode = unix.FALLOC_FL_ZERO_RANGE
		after = lay(after, nil, at.End())
	}
	in := at.Intersect(ranges.Between(0, int64(len(after))))
	if !in.Empty() {
		clear(after[in.Off:in.End()])
	}
	k.begin(after, ranges.Range{})
	return fmt.Sprintf("fallocate mode %#x %v", mode, at), k.end(k.file.Allocate(mode, at.Off, at.Len, Caller{}), at)
}

func (k *worker) sync() (string, error) {
	err := k.file.Sync(k.random.IntN(2) == 0)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.oracle.synced()
	}
	return "sync", err
}

func (k *worker) read(at ranges.Range) (string, error) {
	want := k.now()
	at = at.Intersect(ranges.Between(0, int64(len(want))))
	what := fmt.Sprintf("read %v", at)
	b := make([]byte, at.Len)
	if n, err := k.file.Read(b, at.Off, Caller{}); err != nil || int64(n) != at.Len {
		return what, fmt.Errorf("it read %d: %w", n, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, c := range b {
		if off := at.Off + int64(i); c != want[off] && (c != 0 || !k.oracle.hurt.Overlaps(rng(off, 1))) {
			return what, fmt.Errorf("byte %d is %#x, want %#x", off, c, want[off])
		}
	}
	return what, nil
}

// copyTo copies to the same place of another file. Zeros of lost bytes are data
// there: their record may come a second later.
func (k *worker) copyTo(other int, at ranges.Range) (string, error) {
	to := &worker{world: k.world, file: k.files[other], oracle: k.oracles[other], random: k.random}
	at = at.Intersect(ranges.Between(0, int64(len(k.now()))))
	what := fmt.Sprintf("copy %v to %s", at, to.file.name)
	if at.Empty() {
		return what, nil
	}
	b := make([]byte, at.Len)
	if n, err := k.file.Read(b, at.Off, Caller{}); err != nil || int64(n) != at.Len {
		return what, fmt.Errorf("reading it: %d, %v", n, err)
	}
	to.begin(lay(bytes.Clone(to.now()), b, at.Off), at)
	n, err := Copy(to.file.File, at.Off, k.file.File, at.Off, at.Len, Caller{})
	if err == nil && n < at.Len {
		err = fmt.Errorf("it copied %d", n)
	}
	err = to.end(err, at)
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, c := range b {
		if c == 0 { // recorded there now, and a live row may call it lost
			to.oracle.hurt.Add(rng(at.Off+int64(i), 1))
			to.oracle.since.Add(rng(at.Off+int64(i), 1))
		}
	}
	return what, err
}

// flush is what a second does.
func (k *worker) flush() error {
	if err := k.ledger.Flush(); err != nil {
		return err
	}
	return k.journal.Sync()
}

// strike poisons some lines of the file.
func (k *worker) strike() (string, error) {
	size := int64(len(k.now()))
	if size == 0 {
		return "strike nothing", nil
	}
	at := rng(k.random.Int64N(size), 1+k.random.Int64N(300)).Intersect(ranges.Between(0, size))
	latent := k.random.IntN(3) == 0
	what := fmt.Sprintf("poison %v latent=%v", at, latent)
	for page := ranges.Page(at.Off); page.Off < at.End(); page = page.Shift(pg) {
		if hole, err := k.medium.pmem.Open(k.file.fd).IsHole(page); hole || err != nil {
			return what + ": a hole", err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inject(k.file, at, latent)
	k.oracle.struck(at.Widen(ranges.LineSize))
	return what, nil
}
