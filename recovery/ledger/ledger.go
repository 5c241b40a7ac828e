// Package ledger is the durable list of lost ranges and of what became of them:
// the truth about lost bytes, of which event streams are only views.
//
// # Rows
//
// A row is one range of one file (by identity, so that renames and hard links
// change nothing) with one state:
//
//	lost           the bytes were given up, the poison is still there
//	reinitialized  the medium is clean again, the bytes are zero
//	overwritten    the application wrote new data: history
//	healed         the lost content is back: history
//
// Lost and reinitialized rows are live: no byte of a file is in two of them.
// Rows of zeros that were copied (CauseCopied) leave no history and take no row's
// place, since whoever may write can make them again and again; and of a file that
// has no row, live or of history, nothing is kept. So history grows with what
// the medium loses, and the rest with the bytes that are there.
// All changes are exact to the byte: overwriting the middle of a lost row
// leaves two. A piece keeps the time when it was lost; a row that was split
// keeps its id in the first piece that stays. Neighbours that are the same in
// all but place are one row, so a run of pages lost by one Change is one row.
//
// # Memory and disk
//
// A Change is applied to memory at once, and every query sees it. Record
// leaves the writing to the flusher, which wakes within a second; Commit
// waits for the disk. Either way there is one transaction at a time, of some
// thousand rows in a storm, and concurrent Commits share one; no Change is
// torn. A crash at any instant leaves the store as it was after some
// transaction. Where loss comes faster than the disk takes it, Record waits
// for the disk, for up to a second. If the disk is slower than that, or
// refuses, rows wait in memory and are tried again; see ErrFull.
//
// Only files that were asked for are held in memory: about 100 bytes a range,
// 300 bytes a file. A live file's rows are read once, at its first use. No lock
// that others need is held over that: if the disk hangs, callers wait that name
// a file whose rows are not in memory, and nobody else.
//
// A damaged store is refused, with the way out. Open walks all its pages; each
// record has a checksum, and the numbers of files, rows and closed intents, and
// sums over them, are kept, so that none is missed and none is of another time,
// as where the disk failed to write a page. The rows of a file are checked when
// they are read. One thing can't be told from a crash: bbolt has two meta
// pages, and where the newer is damaged, or the file as a whole is an old one,
// the transaction before it, or that of then, is the last.
//
// # Store, schema version 2
//
// One bbolt file. All numbers in keys are 8 bytes, big-endian; KEY is
// fileid.ID.Key; "+" joins. Values, but for the version, end in the CRC-32C of
// key and value, 4 bytes, big-endian; before it stand unsigned varints (u),
// signed zigzag varints (i) and strings (s: u length, bytes). A sum is that of the
// FNV-1a hashes, 64 bits, of key and whole value of each record.
//
//	meta     "version"                 8 bytes, big-endian: 2
//	         "store"                   s filesystem, i root inode, i root btime, s root handle
//	         "counts"                  u next row id, u number of files, u number of closed intents,
//	                                   u sum of files and closed, u bbolt's number of the transaction
//	files    KEY                       i inode, i btime, s handle, s path when last seen, u live rows, u rows of history,
//	                                   u sum of its live rows, u sum of its history
//	rows     KEY + 0x00 + offset       live rows, value as below
//	history  KEY + 0x00 + offset + id  overwritten and healed rows, value as below
//	closed   intent                    empty: closed, and not yet forgotten by the journal
//
//	row value: u id, u length, u state ('l', 'r', 'o', 'h'), s cause, s source,
//	           u granularity, i first, i changed (ns since 1970)
//
// Version 1 had neither sums nor the transaction. It is read, and made version 2 by Open.
package ledger

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Loss is a range that was given up.
type Loss struct {
	File          fileid.ID
	Path          string
	Range         ranges.Range
	Cause, Source string
	Granularity   int64
}

// Move gives the bytes of live rows in Range another state.
type Move struct {
	File  fileid.ID
	Path  string
	Range ranges.Range
	To    State
}

// Change is what belongs together: it is on disk as a whole or not at all.
type Change struct {
	// Lost bytes become lost. Bytes already lost stay as they are; bytes that
	// were reinitialized are lost again and keep the time of their first loss, but
	// stay as they are if zeros were copied there (CauseCopied).
	Lost []Loss
	// Moves come after Lost. Bytes that are in no live row are left alone.
	Moves []Move
	// Close lists the intents that are done with this change.
	Close []uint64
}

// Ledger is an open store. All methods may be called concurrently.
type Ledger struct {
	Points failpoint.Points // for tests; nothing in a product

	store    *store
	readOnly bool
	now      func() time.Time // replaced by tests, before first use
	limit    int              // how many rows may wait; replaced by tests

	live atomic.Int64 // rows, as it is between changes: one that is being changed is still there

	kinds kinds

	mu        sync.RWMutex     // guards the rest down to durable; taken after disk, never held while the disk is asked
	files     map[string]*file // also those of which the last row's end is not durable yet
	rows      int64            // live ones in all files
	records   uint64           // files that have a record, once all batches that are sealed are written
	nextID    uint64
	closed    map[uint64]struct{} // intents closed and not forgotten
	dirty     map[*file]struct{}
	dirtyRows int // offsets in the dirty sets of all files
	history   []past
	closing   []uint64
	forgotten []uint64
	sealed    []batch // oldest first; what is above but for history is in none of them
	inSealed  batchSize
	writing   time.Time     // when the transaction under way began; zero: there is none
	turn      chan struct{} // closed when a transaction has ended
	health    error         // what the last transaction said
	newest    int64         // the latest time that was given to a row, ns since 1970
	shut      bool
	applied   uint64 // number of the newest change
	durable   uint64 // newest change on disk; changed with disk held, too

	disk     sync.Mutex // held over a transaction; guards the two below
	tried    uint64     // newest change that a transaction was tried for
	triedErr error

	wake, hurry, stop, stopped chan struct{} // the flusher's
}

// maxWaiting is how many rows may wait for a disk that refuses them.
const maxWaiting = 1_000_000

// Open opens the store at path, or creates it, for the filesystem of that name
// and the backing directory root. The error is a *StoreError that is
// ErrForeign, ErrVersion, ErrDamaged or ErrLocked, or the system's. Nothing
// that exists is ever replaced.
func Open(path, fs string, root fileid.ID) (*Ledger, error) {
	want := identity{fs: fs, root: root}
	if err := create(path, want); err != nil {
		return nil, err
	}
	l, err := open(path, false)
	if err != nil {
		return nil, err
	}
	if l.store.identity != want {
		_ = l.store.close() // nothing was written
		return nil, &StoreError{Path: path, Kind: ErrForeign, Err: fmt.Errorf(
			"it was made for filesystem %s, %v, and this is filesystem %s, %v",
			l.store.identity.fs, l.store.identity.root, fs, root)}
	}
	if err := l.store.upgrade(); err != nil {
		_ = l.store.close() // the first error is the one to tell
		return nil, err
	}
	go l.flusher() // until Close
	return l, nil
}

// View opens the store at path for queries only, while no mount has it open.
// Errors are as Open's; os.ErrNotExist if there is none.
func View(path string) (*Ledger, error) {
	return open(path, true)
}

func open(path string, readOnly bool) (*Ledger, error) {
	s, err := openStore(path, readOnly)
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		store:    s,
		readOnly: readOnly,
		now:      time.Now,
		limit:    maxWaiting,
		files:    map[string]*file{},
		closed:   map[uint64]struct{}{},
		dirty:    map[*file]struct{}{},
		turn:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		hurry:    make(chan struct{}, 1),
		stop:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	if err := l.readIndex(); err != nil {
		_ = s.close() // the first error is the one to tell
		return nil, err
	}
	return l, nil
}

// Record applies c to memory and returns; it will be on disk within a second,
// if the disk takes it. The error is ErrFull, with nothing applied, if new
// loss is to be recorded and too many rows wait already.
func (l *Ledger) Record(c Change) error {
	_, err := l.change(c)
	return err
}

// Commit applies c, and returns nil when it and everything recorded before is
// durable. On an error of the disk c is applied, waits, and is tried again.
func (l *Ledger) Commit(c Change) error {
	number, err := l.change(c)
	if err != nil {
		return err
	}
	return l.settle(number, number)
}

// change applies c as a whole or, with an error, not at all.
func (l *Ledger) change(c Change) (number uint64, err error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	l.makeRoom()
	if err := l.loadAll(c); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.readOnly:
		return 0, ErrReadOnly
	case l.shut:
		return 0, ErrClosed
	}
	if l.health != nil && l.waiting() >= l.limit && l.isNews(c.Lost) {
		return 0, fmt.Errorf("%w: %d rows wait: %w", ErrFull, l.waiting(), l.health)
	}
	l.applied++
	l.apply(c)
	l.sealIfFull()
	l.poke()
	return l.applied, nil
}

// Forget drops intents from the list of closed ones, once the journal itself
// knows that they are closed.
func (l *Ledger) Forget(intents ...uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range intents {
		if _, ok := l.closed[id]; ok {
			delete(l.closed, id)
			l.forgotten = append(l.forgotten, id)
		}
	}
	l.applied++
	l.poke()
}

// check refuses what no file can hold and no later reader could make sense of.
func (c Change) check() error {
	for _, x := range c.Lost {
		if err := checkRange(x.Range); err != nil {
			return err
		}
	}
	for _, m := range c.Moves {
		if err := checkRange(m.Range); err != nil {
			return err
		}
		if _, ok := stateCode[m.To]; !ok {
			return fmt.Errorf("ledger: %q is no state of a row", m.To)
		}
	}
	return nil
}

func checkRange(r ranges.Range) error {
	if r.Off < 0 || r.Len < 0 || r.Off > math.MaxInt64-r.Len {
		return fmt.Errorf("ledger: %v is no range of a file", r)
	}
	return nil
}
