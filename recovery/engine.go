// Package recovery turns failing I/O on poisoned memory into the bytes that can
// still be had, and clears the poison when the application writes.
//
// # The data path
//
// Every I/O enters through a File (file.go). A clean read is one pread, a clean
// write one pwrite under the inode's shared lock. All else happens only after
// the kernel said no, or where poison is already known:
//
//	try       read.go, write.go, space.go   one call; what is left of it in pieces
//	          recover.go                    a read split by halves down to single pages
//	classify  classify.go                   poison, or an outage? nothing is lost before that is known
//	recover   page.go                       salvage a page, zero the rest
//	          repair.go, ladder.go          clear bad pages and rewrite them, crash-safe
//	          raw.go, sharers.go            those that other files share, with a record for each of them
//	          freeing.go                    those that are to be freed
//	          finish.go, replay.go, owed.go the end of a repair: now, after a crash, or never
//	record    record.go                     ledger, salvage images, events
//
// What a list of media errors names before anybody has met it comes in by
// detected.go; eager.go repairs it without being asked by a write.
//
// # Words
//
// Poison is memory that can't be read. A page is bad when a read of it fails
// and the failure was classified as poison, and suspected while it is only listed.
// A byte is missing when it could not be salvaged, and lost once it was given up
// and recorded. An outage is a failure that is not poison; it is never zeroed,
// recorded as lost or repaired.
//
// # Locks
//
// Inode.mu is held shared by clean writes and by reads of what is known,
// exclusively by whatever classifies or learns, changes a bad page, or the sizes
// around it: nothing is given up while a write may be under way. A clean read
// holds nothing, and notices an exclusive holder (File.Read). damage.mu, inside
// Inode.mu, guards what is known of the inode. Neither is held while the kernel
// is notified of anything.
package recovery

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Config is what an Engine works with. All before ReadOnly is required, and
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

	// VerifyWrites reads back what was written before the write returns. What
	// can't be read is repaired with the bytes still in hand; a write that
	// reads back different all the same fails. On DAX that asks the media,
	// and finds the poison that a write can't see. With a page cache between, the
	// answer comes from there, and proves nothing of the media. A file open for
	// writing only can't be read back. Under semantics that don't recover, what
	// can't be read is an error.
	VerifyWrites bool

	// Breaker is how many pages that nobody's list names may be given up within
	// ten seconds. Failures beyond that are passed through as an outage, until ten
	// seconds were quiet. 0 is DefaultBreaker.
	Breaker int
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
	chunks   sync.Pool     // of *[verifyChunk]byte

	seenAlive atomic.Int64 // when the filesystem was last (mayRepair), ns since 1970
	rootAlive atomic.Int64 // when its root directory was last (CheckDown)

	closings    closings
	enders      oneAtATime // of closings
	checkpoints oneAtATime
	sweeps      oneAtATime   // of copies that are gone
	copies      atomic.Int64 // rows of copied zeros since the last of them

	mu      sync.Mutex // guards damaged, open and listed
	damaged map[string]weak.Pointer[Inode]
	open    map[string]*Inode         // those with repairs that could not be finished: kept until they are
	pins    atomic.Int64              // len(open)
	listed  map[string][]ranges.Range // by file: what a list of media errors names (Detected)
	lists   atomic.Int64              // len(listed)

	inUse    func(fileid.ID) *Inode // see InUse; nil: nobody knows
	patience time.Duration          // sharersPatience

	at failpoint.Points
}

// New makes an engine. Replay must have returned before the first I/O.
func New(c Config) (*Engine, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("reading this boot's id, which repairs are marked with: %w", err)
	}
	c.Breaker = cmp.Or(c.Breaker, DefaultBreaker)
	return &Engine{Config: c, breaker: breaker{limit: c.Breaker}, boot: strings.TrimSpace(string(boot)), damaged: map[string]weak.Pointer[Inode]{}, open: map[string]*Inode{}, listed: map[string][]ranges.Range{}, patience: sharersPatience}, nil
}

// Close makes everything recorded durable. No I/O may follow.
func (e *Engine) Close() error {
	e.enders.end()
	e.checkpoints.end()
	e.sweeps.end()
	return errors.Join(e.endClosings(), e.Ledger.Flush(), e.checkpoint(), e.Journal.Sync())
}

// Recheck forgets what is known of bad pages, so that the next read of each
// asks the medium again. For use after poison was cleared behind the engine.
func (e *Engine) Recheck() {
	for _, i := range e.damagedInodes() {
		i.lock()
		if d := i.damage.Load(); d != nil {
			d.recheck(e.Journal)
		}
		i.unlock()
	}
}

// pin keeps an inode that has unfinished repairs, though nobody uses it.
func (e *Engine) pin(i *Inode, key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open[key] = i
	e.pins.Store(int64(len(e.open)))
}

func (e *Engine) unpin(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, key)
	e.pins.Store(int64(len(e.open)))
}

func (e *Engine) pinned(key string) *Inode {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.open[key]
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
