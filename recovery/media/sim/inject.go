package sim

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// What can be wrong with a range, as RangeError.Reason.
var (
	ErrEmpty    = errors.New("the range is empty; give a length of 1 or more")
	ErrNegative = errors.New("the offset is negative; offsets count from 0, the begin of the file")
	ErrOverflow = errors.New("the range ends beyond the largest offset that there is; give a smaller length")
	ErrPastEnd  = errors.New("the range ends past the end of the file; choose one within it")
	ErrNotFile  = errors.New("this is not a regular file; name one")
)

// RangeError says why a range can't be poisoned.
type RangeError struct {
	Path   string
	Range  ranges.Range
	Size   int64 // of the file; -1 if that does not matter
	Reason error
}

func (e *RangeError) Error() string {
	if e.Size < 0 {
		return fmt.Sprintf("%q %v: %v", e.Path, e.Range, e.Reason)
	}
	return fmt.Sprintf("%q %v (%d bytes): %v", e.Path, e.Range, e.Size, e.Reason)
}

func (e *RangeError) Unwrap() error { return e.Reason }

// check tells whether r of the file open at fd can be poisoned.
func check(fd int, path string, r ranges.Range) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("injecting into %q: fstat: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return &RangeError{path, r, -1, ErrNotFile}
	case r.Off < 0:
		return &RangeError{path, r, -1, ErrNegative}
	case r.Len <= 0:
		return &RangeError{path, r, -1, ErrEmpty}
	case r.Off > math.MaxInt64-r.Len:
		return &RangeError{path, r, -1, ErrOverflow}
	case r.End() > st.Size:
		return &RangeError{path, r, st.Size, ErrPastEnd}
	}
	return nil
}

// ErrTooFew says that the files have fewer lines than shall be poisoned.
var ErrTooFew = errors.New("the files have too few lines of 64 bytes; ask for fewer or name more files")

// InjectRandom poisons n different lines of the files, given by their paths
// below the backing directory, one injection each. The same seed, files (in
// the same order) and sizes give the same lines.
func (m *Medium) InjectRandom(seed uint64, n int, paths []string, latent bool) ([]Injection, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ends := make([]int64, len(paths)) // lines of all files up to each one
	sizes := make([]int64, len(paths))
	total := int64(0)
	for i, path := range paths {
		var err error
		if sizes[i], err = m.size(path); err != nil {
			return nil, err
		}
		total += roundUp(sizes[i], ranges.LineSize) / ranges.LineSize
		ends[i] = total
	}
	if int64(n) > total {
		return nil, fmt.Errorf("%d lines wanted, %d there: %w", n, total, ErrTooFew)
	}
	perFile := map[int][]ranges.Range{}
	for _, line := range pick(seed, n, total) {
		i, _ := slices.BinarySearch(ends, line+1)
		first := int64(0)
		if i > 0 {
			first = ends[i-1]
		}
		off := (line - first) * ranges.LineSize
		perFile[i] = append(perFile[i], ranges.Between(off, min(off+ranges.LineSize, sizes[i])))
	}
	var out []Injection
	var ids []uint64
	for i, path := range paths {
		done, err := m.injectAll(path, perFile[i], latent)
		for _, inj := range done {
			out, ids = append(out, inj), append(ids, inj.ID)
		}
		if err != nil {
			for _, id := range ids {
				m.commit(record{Op: opRemove, ID: id})
			}
			return nil, err
		}
	}
	return out, m.settleOr(ids...)
}

// pick is n different numbers below total, in order (Floyd's sampling).
func pick(seed uint64, n int, total int64) []int64 {
	random := rand.New(rand.NewPCG(seed, 0))
	taken := make(map[int64]bool, n)
	for top := total - int64(n); top < total; top++ {
		k := random.Int64N(top + 1)
		if taken[k] {
			k = top
		}
		taken[k] = true
	}
	out := make([]int64, 0, n)
	for k := range taken {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// injectAll is called with m.mu held.
func (m *Medium) injectAll(path string, rs []ranges.Range, latent bool) ([]Injection, error) {
	if len(rs) == 0 {
		return nil, nil
	}
	fd, err := m.openPath(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	id, err := fileid.Of(fd)
	if err != nil {
		return nil, fmt.Errorf("injecting into %q: %w", path, err)
	}
	out := make([]Injection, 0, len(rs))
	for _, r := range rs {
		inj, err := m.inject(id, path, fd, r, latent)
		if err != nil {
			return out, err
		}
		out = append(out, inj)
	}
	return out, nil
}

func (m *Medium) size(path string) (int64, error) {
	fd, err := m.openPath(path, unix.O_PATH)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("injecting into %q: fstat: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, &RangeError{path, ranges.Range{}, -1, ErrNotFile}
	}
	return st.Size, nil
}

func (m *Medium) openPath(path string, flags uint64) (int, error) {
	fd, err := unix.Openat2(m.root, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, fmt.Errorf("injecting into %q: %w", path, err)
	}
	return fd, nil
}
