// Package sim is a medium with simulated poison over real files: what a
// machine with bad persistent memory would show to the engine, errno for
// errno, without one.
//
// Poison is injected (Medium.Inject) in lines of 64 bytes and hangs on the
// file's identity: it survives renames, restarts and remounts, and dies with
// the file. It is known, which is to say listed by the kernel, or latent:
// nobody has met it yet. The bytes below stay what they are; they are only
// withheld, until a write or the freeing of their blocks ends the poison.
//
// # Profiles
//
// A profile is a kernel. All are modelled after fs/dax.c and
// drivers/nvdimm/pmem.c as read, and as measured on Linux 6.1 and 6.12:
//
//   - "dax", Linux ≥ 5.19. Reads: known poison lets nothing of (request ∩
//     extent) through, in whole pages, EIO; a short count only where an
//     earlier extent of the request was read. Extents are modelled as 2 MiB,
//     aligned in the file. Writes: strides of whole pages over known poison
//     clear it; other strides fail with EFAULT, or short.
//   - "dax-5.18": writes over known poison fail with EIO. Punching or
//     zero-ranging its pages, then writing, gets rid of it.
//   - "line": no kernel that exists. Only the poisoned line fails, and a write
//     that covers it ends its poison; a write of a part of it gets EFAULT.
//
// In all of them a read that runs into latent poison is short, and from then
// the line is touched: the next read of the line, or write of its page,
// finds it listed (a real kernel's list is a moment late, too). So a reader
// may go on behind the line and lose its 64 bytes only. A read that begins in a
// latent line gets EFAULT and lists it at once. What is listed is a sector
// of 512 bytes ("line": 64 bytes). Latent poison does not stop a write, and
// is not ended by one ("line": it is, where the whole line is written).
//
// Where filesystems differ XFS is the model, which is the stricter: anything
// that zeroes a part of a page with known poison fails with EIO and leaves the
// page: truncate into it, growing the file past such a tail page by
// write, truncate or fallocate, and punch hole or zero range of a part of it.
// Punch hole and zero range of whole pages, and truncate, give blocks back:
// their poison is gone from the file.
//
// A hole has no memory that could be bad; poison injected there behaves as if the
// block were allocated.
//
// # What else it promises
//
// A process may be killed at any instant: a write that ends poison goes below
// first and is recorded then. The store keeps checksums of the withheld pages:
// if one differs after a restart, somebody wrote the file without us (or the
// process died between the two steps), and the page's poison is gone. While a
// medium is in use, nobody else may write the files.
package sim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Options say what to simulate, and where.
type Options struct {
	Profile string       // one of Profiles
	Store   string       // path of the file that keeps the poison; "": it is forgotten at the end
	Root    int          // the backing directory; stays the caller's and open
	Below   media.Medium // the real files
}

// Medium is a medium with simulated poison.
type Medium struct {
	rules rules
	below media.Medium
	root  int

	// epoch moves whenever a file gets its first poison or loses its last, so
	// that files may remember that they have none (file.clean).
	epoch atomic.Uint64

	// mu guards all below, and the poison of every file. I/O on files with
	// poison holds it: shared where nothing changes, exclusively otherwise.
	mu         sync.RWMutex
	files      map[string]*poison // by fileid.ID.Key; only files with poison
	injections map[uint64]*injection
	next       uint64 // ID of the next injection
	store      *store
}

var _ media.Medium = (*Medium)(nil)

// New is a medium with the poison that the store holds.
func New(o Options) (*Medium, error) {
	rules, err := rulesOf(o.Profile)
	if err != nil {
		return nil, err
	}
	m := &Medium{
		rules: rules, below: o.Below, root: o.Root,
		files: map[string]*poison{}, injections: map[uint64]*injection{}, next: 1,
	}
	m.epoch.Store(1)
	if m.store, err = load(o.Store, m.apply); err != nil {
		return nil, err
	}
	m.ForgetGone()
	if err := m.store.tidy(m.records); err != nil {
		return nil, errors.Join(err, m.store.close())
	}
	return m, nil
}

// Close makes the store durable and closes it. Files must not be used afterwards.
func (m *Medium) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store.close()
}

// Open wraps fd.
func (m *Medium) Open(fd int) media.File {
	return &file{medium: m, below: m.below.Open(fd)}
}

// KernelCopies is false: the kernel knows nothing of simulated poison.
func (m *Medium) KernelCopies() bool { return false }

// AnyListed is false: who frees simulated poison is rid of it.
func (m *Medium) AnyListed() bool { return false }

// LookListed is false, as AnyListed.
func (m *Medium) LookListed() bool { return false }

// MustClear is false, as AnyListed.
func (m *Medium) MustClear() bool { return false }

// Source says that the poison is simulated.
func (m *Medium) Source() string { return "simulated" }

// Injection is poison that was ordered, and what is left of it.
type Injection struct {
	ID           uint64         `json:"id"`
	Path         string         `json:"path,omitempty"` // below the backing directory, when injected
	PathB64      []byte         `json:"path_b64,omitempty"`
	File         fileid.ID      `json:"file"`
	ranges.Range                // as ordered
	Latent       bool           `json:"latent"`    // some of what remains is known to nobody yet
	Remaining    []ranges.Range `json:"remaining"` // in whole lines
}

// String is the injection in a line for people.
func (i Injection) String() string {
	path := i.Path
	if path == "" {
		path = string(i.PathB64)
	}
	return fmt.Sprintf("%d: %q %v", i.ID, path, i.Range)
}

// Inject poisons r of the file with the given identity, open for reading at
// fd and known to people by path. Lines of which r has a byte are poisoned
// whole. It is durable when Inject returns. Errors of the caller are a
// *RangeError.
func (m *Medium) Inject(id fileid.ID, path string, fd int, r ranges.Range, latent bool) (Injection, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inj, err := m.inject(id, path, fd, r, latent)
	if err != nil {
		return Injection{}, err
	}
	return inj, m.settleOr(inj.ID)
}

// settleOr makes injections durable, or takes them back. The caller holds m.mu.
func (m *Medium) settleOr(ids ...uint64) error {
	err := m.settle()
	if err != nil {
		for _, id := range ids {
			m.apply(record{Op: opRemove, ID: id})
		}
	}
	return err
}

// inject is Inject without making it durable. The caller holds m.mu.
func (m *Medium) inject(id fileid.ID, path string, fd int, r ranges.Range, latent bool) (Injection, error) {
	f := &file{medium: m, below: m.below.Open(fd)}
	if err := check(fd, path, r); err != nil {
		return Injection{}, err
	}
	p := m.files[id.Key()]
	if p != nil {
		m.verify(p, f)
	}
	sums := map[int64]int64{}
	for page := r.Widen(ranges.PageSize); !page.Empty(); page = ranges.Between(page.Off+ranges.PageSize, page.End()) {
		sum, err := f.sum(page.Off)
		if err != nil {
			return Injection{}, fmt.Errorf("injecting into %q %v: reading the page at %d: %w", path, r, page.Off, err)
		}
		sums[page.Off] = sum
	}
	rec := record{Op: opInject, ID: m.next, File: id, Path: path, Range: r, Known: !latent, Sums: sums}
	m.commit(rec)
	if p = m.files[id.Key()]; len(p.injected) == 1 {
		p.verified = true
	}
	return m.describe(m.injections[rec.ID]), nil
}

// List is all injections of which something is left, in the order of their
// IDs. It forgets the poison of files that are gone or were written anew.
func (m *Medium) List() []Injection {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.files {
		m.inspect(p)
	}
	out := make([]Injection, 0, len(m.injections))
	for _, inj := range m.injections {
		out = append(out, m.describe(inj))
	}
	slices.SortFunc(out, func(a, b Injection) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// ErrNoInjection says that nothing is left of an injection, or that it never was.
var ErrNoInjection = errors.New("no such injection; mendfs inject --list shows them")

// Remove takes an injection back: its bytes can be read again, unless
// another injection covers them.
func (m *Medium) Remove(id uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.injections[id] == nil {
		return fmt.Errorf("injection %d: %w", id, ErrNoInjection)
	}
	m.commit(record{Op: opRemove, ID: id})
	return m.settle()
}

// Clear takes all injections back.
func (m *Medium) Clear() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.injections {
		m.commit(record{Op: opRemove, ID: id})
	}
	return m.settle()
}

// describe is called with m.mu held.
func (m *Medium) describe(inj *injection) Injection {
	out := Injection{ID: inj.id, Path: inj.path, File: inj.in.id, Range: inj.r, Remaining: inj.left.Slice()}
	if !utf8.ValidString(inj.path) {
		out.Path, out.PathB64 = "", []byte(inj.path)
	}
	for left := range inj.left.All() {
		out.Latent = out.Latent || !inj.in.listed.Contains(left)
	}
	return out
}

// commit makes a change and records it. Where the store can't follow (a full
// disk), it is written anew by the next settle that can; a restart before
// that may bring back poison, which the checksums mostly catch. The caller
// holds m.mu.
func (m *Medium) commit(r record) {
	m.apply(r)
	m.store.append(r)
	if m.store.long() {
		_ = m.store.tidy(m.records) // said above
	}
}

// settle makes the store complete, short and durable. The caller holds m.mu.
func (m *Medium) settle() error {
	if err := m.store.tidy(m.records); err != nil {
		return fmt.Errorf("recording the simulated poison: %w", err)
	}
	return m.store.sync()
}

// inspect looks whether the file of p is still there and unchanged. The
// caller holds m.mu.
func (m *Medium) inspect(p *poison) {
	fd, err := fileid.Open(m.root, p.id, p.path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		m.forgetGone(p)
		return // it can't be looked at now: its poison stays
	}
	defer unix.Close(fd)
	m.verify(p, &file{medium: m, below: m.below.Open(fd)})
}

// verify drops, once per process, the poison of those pages of p whose bytes are not
// what they were: their blocks were given back, or cleared. The caller holds
// m.mu.
func (m *Medium) verify(p *poison, f *file) {
	if p.verified {
		return
	}
	st, err := f.below.Stat()
	if err != nil {
		return // the next touch tries again
	}
	var changed []ranges.Range
	for page, was := range p.sums {
		if was == unknownSum {
			continue
		}
		now, err := f.sum(page)
		if err != nil {
			return // not readable through this descriptor, or an outage: the next touch tries again
		}
		if now != was || page >= st.Size {
			changed = append(changed, ranges.Page(page))
		}
	}
	p.verified = true
	if len(changed) > 0 {
		m.commit(record{Op: opChange, File: p.id, Clear: changed})
	}
}

// everything is more than any file holds.
var everything = ranges.Range{Len: 1 << 62}
