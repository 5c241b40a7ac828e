// Package recovery turns failing I/O on poisoned memory into the bytes that can
// still be had, and clears the poison when the application writes.
//
// # The data path
//
// Every I/O enters through a File (file.go). A clean read or write is one
// pread or pwrite under the inode's shared lock. All else happens only after
// the kernel said no, or where poison is already known:
//
//	try       read.go, write.go     split by halves down to single pages
//	classify  classify.go           poison, or an outage? nothing is lost before that is known
//	recover   page.go, repair.go    salvage, zero the rest; clear and rewrite
//	record    record.go             ledger, salvage images, events
//
// # Words
//
// Poison is memory that can't be read. A page is bad when a read of it fails
// and the failure was classified as poison. A byte is missing when it could not
// be salvaged, and lost once it was given up and recorded. An outage is a
// failure that is not poison; it is never zeroed, recorded as lost or repaired.
//
// # Locks
//
// Inode.mu is held shared by I/O and exclusively by whatever changes a bad page
// or the sizes around it. damage.mu, inside it, guards what is known of the
// inode. Neither is held while the kernel is notified of anything.
package recovery

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Config is what an Engine works with. Everything but ReadOnly is required, and
// stays the caller's to close, after the Engine.
type Config struct {
	Medium    media.Medium
	Journal   *journal.Journal
	Ledger    *ledger.Ledger
	Events    *event.Log
	Root      int    // descriptor of the backing directory, for paths and replay
	FS        string // fileid.Filesystem of Root
	Semantics Semantics
	ReadOnly  bool // never write to the backing directory, not even to finish a repair
}

// Engine is the recovery engine of one mount. All methods may be called
// concurrently.
type Engine struct {
	Config
	boot     string // this boot, as intents carry it
	breaker  breaker
	outage   outage
	counters counters
	sequence atomic.Uint64 // numbers inodes, for the order of locks
	closes   atomic.Uint64 // intents closed since the start, for checkpoints

	mu      sync.Mutex // guards damaged
	damaged map[string]weak.Pointer[Inode]

	at func(step) // for tests: called at each numbered step of a repair; nil otherwise
}

// New makes an engine. Replay must have returned before the first I/O.
func New(c Config) (*Engine, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading this boot's id, which repairs are marked with: %w", err)
	}
	return &Engine{Config: c, boot: strings.TrimSpace(string(boot)), damaged: map[string]weak.Pointer[Inode]{}}, nil
}

// Close makes everything recorded durable. No I/O may follow.
func (e *Engine) Close() error {
	return errors.Join(e.Ledger.Flush(), e.checkpoint(), e.Journal.Sync())
}

// checkpoint lets the journal and the ledger forget intents that are closed.
func (e *Engine) checkpoint() error {
	closed, err := e.Journal.Checkpoint()
	if err != nil {
		return fmt.Errorf("checkpoint of the journal: %w", err)
	}
	e.Ledger.Forget(closed...)
	return nil
}

// Recheck forgets what is known of bad pages, so that the next read of each
// asks the medium again. For use after poison was cleared behind the engine.
func (e *Engine) Recheck() {
	for _, i := range e.damagedInodes() {
		i.mu.Lock()
		if d := i.damage.Load(); d != nil {
			d.recheck(e.Journal)
		}
		i.mu.Unlock()
	}
}

func (e *Engine) remember(i *Inode, key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.damaged[key] = weak.Make(i)
}

func (e *Engine) damagedInodes() []*Inode {
	e.mu.Lock()
	defer e.mu.Unlock()
	var live []*Inode
	for key, w := range e.damaged {
		if i := w.Value(); i != nil {
			live = append(live, i)
		} else {
			delete(e.damaged, key)
		}
	}
	return live
}

// Inode is what the engine knows of one backing file while somebody uses it.
// There must be at most one Inode for a backing file at a time.
type Inode struct {
	engine *Engine
	seq    uint64
	// mu is held shared by ordinary I/O, exclusively by repair.
	mu     sync.RWMutex
	damage atomic.Pointer[damage] // nil: nothing is known, the clean path
}

// NewInode makes the Inode of the file open at fd; O_PATH will do, and fd is
// used during the call only. It costs nothing as long as nothing was ever lost
// on this mount.
func (e *Engine) NewInode(fd int) *Inode {
	i := &Inode{engine: e, seq: e.sequence.Add(1)}
	if !e.Ledger.Any() && !e.Journal.HasImages() {
		return i
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return i // asked again when the file meets trouble
	}
	if e.Ledger.Has(id.Key()) || !e.Journal.Pages(id.Key()).Empty() {
		_, _ = i.know(id) // on error the medium is asked, as for a file never seen
	}
	return i
}

// know returns the inode's damage, loading what ledger and journal have.
func (i *Inode) know(id fileid.ID) (*damage, error) {
	if d := i.damage.Load(); d != nil {
		return d, nil
	}
	d := &damage{id: id, key: id.Key()}
	lost, reinit, err := i.engine.Ledger.Live(d.key)
	if err != nil {
		return nil, fmt.Errorf("asking the ledger: %w", err)
	}
	d.lost, d.reinit = lost, reinit
	if err := d.loadOwed(i.engine.Journal); err != nil {
		return nil, err
	}
	if !i.damage.CompareAndSwap(nil, d) {
		return i.damage.Load(), nil
	}
	i.engine.remember(i, d.key)
	return d, nil
}

// View runs fn while no repair of the file is under way: what fn sees of sizes
// and times was never an intermediate state.
func (i *Inode) View(fn func() error) error {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return fn()
}

// damage is what is known of a file that was hurt.
type damage struct {
	id  fileid.ID
	key string

	mu sync.Mutex // guards all below
	// bad are pages served from what is known: their image, or zeros where
	// there is none. unsure are bad pages on nobody's list, which are asked
	// again once per request.
	bad, unsure ranges.Set
	// lost are bytes given up, reinit bytes that are zero on clean media: the
	// ledger's live rows.
	lost, reinit *ranges.Set
	// open are repairs that were written but could not be closed, openPages their
	// pages: nobody may write there until the intents are closed.
	openPages ranges.Set
	open      []*unfinished
}

// loadOwed makes the pages whose image is owed to the medium known as bad.
func (d *damage) loadOwed(j *journal.Journal) error {
	for r := range j.Pages(d.key).All() {
		for off := r.Off; off < r.End(); off += ranges.PageSize {
			im, ok, err := j.Image(d.key, off)
			if err != nil {
				return fmt.Errorf("reading the image of page %v: %w", ranges.Page(off), err)
			}
			if ok && im.Pending {
				d.bad.Add(ranges.Page(off))
			}
		}
	}
	return nil
}

// recheck makes every page unknown again but those that are owed an image.
func (d *damage) recheck(j *journal.Journal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad, d.unsure = ranges.Set{}, ranges.Set{}
	_ = d.loadOwed(j) // what can't be loaded is asked of the medium
}

// concernsRead reports whether a read of r needs more than one pread.
func (d *damage) concernsRead(r ranges.Range) bool {
	r = r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(r) || d.unsure.Overlaps(r) || d.lost.Overlaps(r)
}

// concernsWrite reports whether a write of r needs more than one pwrite.
func (d *damage) concernsWrite(r ranges.Range) bool {
	r = r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(r) || d.unsure.Overlaps(r) || d.lost.Overlaps(r) || d.openPages.Overlaps(r)
}

// isBad reports whether the page is known bad.
func (d *damage) isBad(page ranges.Range) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad.Overlaps(page) || d.unsure.Overlaps(page)
}

// nextBad is the first known-bad page that touches r; the zero range if none does.
func (d *damage) nextBad(r ranges.Range) ranges.Range {
	wide := r.Widen(ranges.PageSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	first := ranges.Range{Off: wide.End()}
	for _, s := range []*ranges.Set{&d.bad, &d.unsure} {
		for piece := range s.Within(wide) {
			if piece.Off < first.Off {
				first = ranges.Page(piece.Off)
			}
			break
		}
	}
	if first.Empty() {
		return ranges.Range{}
	}
	return first
}

// counters are totals since the mount.
type counters struct {
	recoveredReads, salvagedBytes, lostBytes   atomic.Int64
	repairedPages, failedRepairs, outageErrors atomic.Int64
	replayed                                   atomic.Int64
}

// Status is the engine's part of `mendfs status`.
type Status struct {
	Semantics      string `json:"semantics"`
	KnownBadPages  int64  `json:"known_bad_pages"` // of files in use
	OpenIntents    int    `json:"open_intents"`
	RecoveredReads int64  `json:"recovered_reads"`
	SalvagedBytes  int64  `json:"salvaged_bytes"`
	LostBytes      int64  `json:"lost_bytes"` // given up since the mount; the ledger has all
	RepairedPages  int64  `json:"repaired_pages"`
	FailedRepairs  int64  `json:"failed_repairs"`
	OutageErrors   int64  `json:"outage_errors"`
	Replayed       int64  `json:"replayed_intents"`
	Breaker        bool   `json:"breaker_open"` // true: uncorroborated failures are passed through for now
}

// Status reports totals since the mount and what is known now.
func (e *Engine) Status() Status {
	s := Status{
		Semantics:      e.Semantics.Name,
		OpenIntents:    len(e.Journal.Intents()),
		RecoveredReads: e.counters.recoveredReads.Load(),
		SalvagedBytes:  e.counters.salvagedBytes.Load(),
		LostBytes:      e.counters.lostBytes.Load(),
		RepairedPages:  e.counters.repairedPages.Load(),
		FailedRepairs:  e.counters.failedRepairs.Load(),
		OutageErrors:   e.counters.outageErrors.Load(),
		Replayed:       e.counters.replayed.Load(),
		Breaker:        e.breaker.open(time.Now()),
	}
	for _, i := range e.damagedInodes() {
		if d := i.damage.Load(); d != nil {
			d.mu.Lock()
			s.KnownBadPages += (d.bad.Bytes() + d.unsure.Bytes()) / ranges.PageSize
			d.mu.Unlock()
		}
	}
	return s
}
