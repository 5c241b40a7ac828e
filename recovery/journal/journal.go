// Package journal keeps what a repair is about to do, and the best image of
// every bad page, in a file that survives the daemon and a power cut.
//
// # What the caller may rely on
//
//   - When [Journal.Begin], [Journal.Punching], [Journal.Keep], or
//     [Journal.SaveImage] of a pending image has returned nil, the record is
//     durable: a later Open gives it back whatever happens to the process or to
//     the power. One fdatasync serves all callers that wait for one.
//   - When one of them has returned an error, the record may or may not be
//     there after a crash. The caller does what it does when the process dies
//     just before: nothing to the medium.
//   - The other calls hold at once in memory, after the death of the process
//     (their record is in the kernel's page cache) and, if the journal is not
//     failing, from one second later after a power cut too. Any durable call or
//     [Journal.Sync] in between makes them durable at once. So an image that
//     was dropped does not come back when the daemon is killed, but may after a
//     power cut within that second: Open's images are to be checked against the
//     medium, and dropped where the page reads without error.
//   - After a crash the journal is what it was after some call, never a mix:
//     records are kept in order, and a record is there only if all before it are.
//   - Once a write or an fdatasync has failed, the file is not trusted again
//     (the kernel may have dropped what it could not write, and the next
//     fdatasync would not say so). Appending fails with the same error until
//     the live records could be written to a fresh file, which Begin, Keep,
//     Punching, Sync and Checkpoint try, at most once a second.
//   - An intent's ID is never used again for the life of a state directory, even
//     if the journal is moved away: a new journal starts at a random place.
//
// All methods are safe for concurrent use. Two processes must not Open the same
// journal (the lock on the state directory sees to that); any number may View it.
//
// # Format, version 1
//
// Integers of fixed size are little-endian. The file starts with a header of
// 4096 bytes, written once and never changed:
//
//	 0  magic "mendfsJ\n"
//	 8  u32 version
//	12  u32 CRC32C of the 4096 bytes with this field zero
//	16  journal id, 16 random bytes, kept for the life of the journal
//	32  u64 sequence number of the first record: greater than any in the file
//	    that this one has replaced
//	40  u64 sequence number of the last record that was there when the file got
//	    its name: up to it everything was durable from the beginning
//	48  u64 lowest intent ID that was not given out when the header was written
//	56  u16 length of the filesystem's name, then the name, then zeros
//
// Magic, version and CRC stay where they are in all versions. Records follow,
// each on a multiple of 8 bytes:
//
//	 0  magic "mfJr"
//	 4  u8 type, 3 zero bytes
//	 8  u32 length of the payload, at most 16 MiB
//	12  u32 CRC32C of the journal id, bytes 0 to 12, bytes 16 to 32, the payload
//	16  u64 sequence number: that of the record before, plus one
//	24  u64 sequence number up to which records were durable when this was written
//	32  payload, then zeros up to the next multiple of 8
//
// The payload is made of unsigned varints (u), zigzag varints (i), strings (u
// length, bytes) and range lists (u count, then i offset and i length of each):
//
//	1 intent   u id, string filesystem, file, string path, i offset, i length,
//	           i size, i end, i mtime, i ctime, u restore mtime, string boot id,
//	           missing, lost, overwritten, i punched, i time, string image; then, or
//	           nothing, u count of sums, and u CRC32C for each
//	2 punching u id, i time; where the page is zeroed on the device, i ctime
//	3 close    u ids up to the end
//	4 keep     as intent; closes the open intent of that id
//	5 drop     u id of a kept intent
//	6 image    file, string path, i page, u pending, missing, string data: empty if it
//	           could not be read when the journal was rewritten
//	7 clear    string key, i offset, i length: images of these pages are dropped
//	8 seal     nothing; everything before it is durable and the journal was shut down
//
// where file is u inode, i birth time, string handle. The space behind the last
// record is preallocated and reads as zeros.
//
// # Opening
//
// A scan reads records as long as they follow each other. What comes then is a
// torn tail, left by a crash, and is cut off, unless the header or a whole record
// behind it says that it was durable: then the file is damaged, and Open refuses
// ([ErrDamaged]). A journal that does not end in a seal is rewritten by Open to
// a fresh file before anything is appended to it: nothing of an old tail can be
// taken for a record, and what an earlier process failed to sync is synced.
//
// # Compaction
//
// Live records are written to "<journal>.new", which then replaces the journal:
// by [Journal.Checkpoint] when garbage exceeds 16 MiB and half of the file, by any
// call that appends when the disk is full and the new file would have the room, and by
// any durable call when the file is not to be trusted. What has not helped is tried
// again after a second.
// Checkpoint lets the other calls go on: what they append to the old file
// meanwhile is copied behind the rest, and only the last of it holds them up.
// An image that can't be read is left behind ([Journal.TakeUnread]), and the old
// file keeps the name "<journal>.unread-NUMBER".
package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
)

const (
	compactAt    = 16 << 20
	chunk        = 1 << 20     // what the file is extended by
	flushDelay   = time.Second // how long a record that nobody waits for may stay unsynced
	retryDelay   = time.Second // between two attempts to get a fresh file
	skippedIDs   = 1 << 20     // more intents than a torn tail can hold
	seqGap       = 1 << 32     // more records than are appended while the journal is compacted
	idsPerRecord = 1 << 16     // in the close records of a fresh file
)

// Journal is an open journal file. Make one with [Open] or [View].
type Journal struct {
	disk disk
	path string

	// mu guards what is below. Whoever appends, syncs or compacts holds it;
	// during an fdatasync it is released, with syncing set, and while
	// Checkpoint compacts, with compacting set.
	mu      sync.Mutex
	cond    *sync.Cond // of mu: syncing or compacting became false, synced or broken changed
	tail    int64      // where the next record goes
	size    int64      // of the file, preallocated space included
	seq     uint64     // of the last record
	synced  uint64     // records up to here are durable
	syncing bool
	// compacting: a fresh file is being written without the lock. Whoever needs
	// the file for himself waits (settle).
	compacting bool
	sealed     bool        // the last record is a seal
	broken     error       // why the file can't be appended to before it was rewritten
	retry      time.Time   // no rewriting of a broken journal before
	over       error       // why nothing can be appended any more: ErrClosed, ErrReadOnly
	flusher    *time.Timer // nil, or what will sync within flushDelay; Shutdown stops it

	// checkpoint lets one Checkpoint run at a time, so that closed changes
	// otherwise only at its end. Before mu in order.
	checkpoint sync.Mutex

	// index guards file, head and state, after mu in order. To change them takes both
	// locks, to look at them either.
	index sync.RWMutex
	file  file
	head  header
	state *state

	unread []Unread // not yet taken; guarded by mu

	compactAt int64 // garbage that makes a compaction worthwhile

	at failpoint.Points
}

// Open opens the journal at path for the filesystem of the given name
// (fileid.Filesystem), and creates it if there is none. The error is, or wraps,
// ErrDamaged, ErrForeign, ErrVersion, or what the disk said.
//
// A state disk that can be read but not written does not keep Open from
// succeeding: replay and salvage images are there, and Begin gives the error.
func Open(path, filesystem string) (*Journal, error) {
	return open(osDisk{}, path, filesystem)
}

func open(d disk, path, filesystem string) (*Journal, error) {
	j := newJournal(d, path)
	f, err := d.Open(path, true)
	if errors.Is(err, fs.ErrNotExist) {
		return j.create(filesystem)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	err = j.load(f)
	if err == nil && j.head.fs != filesystem {
		err = fmt.Errorf("journal %s: %w: it is of %s, and the backing is on %s; use another --state", path, ErrForeign, j.head.fs, filesystem)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !j.sealed {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.state.next += skippedIDs // intents that were torn off had IDs too
		j.broken = fmt.Errorf("journal %s: not shut down in order, and not yet rewritten", path)
		_ = j.mend() // the error stays in j.broken, and Begin gives it
	}
	return j, nil
}

// View opens the journal at path to be looked at, also while a mount is
// appending to it: it shows what was there at some moment. Every change is
// refused with ErrReadOnly.
func View(path string) (*Journal, error) {
	return view(osDisk{}, path)
}

func view(d disk, path string) (*Journal, error) {
	j := newJournal(d, path)
	j.over = ErrReadOnly
	f, err := d.Open(path, false)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	// A record that is being written just now looks damaged once, never twice:
	// what a later record calls durable had been written before that record.
	var at int64 = -1
	for {
		err = j.load(f)
		var damage *DamageError
		if !errors.As(err, &damage) || damage.Off == at {
			break
		}
		at = damage.Off
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func newJournal(d disk, path string) *Journal {
	j := &Journal{disk: d, path: path, state: newState(), compactAt: compactAt}
	j.cond = sync.NewCond(&j.mu)
	return j
}

// create makes a new journal, of the name only when it is complete.
func (j *Journal) create(filesystem string) (*Journal, error) {
	if len(filesystem) > maxName {
		return nil, fmt.Errorf("journal %s: filesystem name of %d bytes, at most %d", j.path, len(filesystem), maxName)
	}
	j.head.fs = filesystem
	rand.Read(j.head.id[:]) // never fails (Go 1.24)
	// 48 bits, so that IDs stay whole numbers in every JSON reader.
	j.state.next = binary.LittleEndian.Uint64(j.head.id[:])>>16 | 1
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.rewrite(); err != nil {
		return nil, fmt.Errorf("journal %s: %w", j.path, err)
	}
	return j, nil
}

// load makes j what a scan of f says.
func (j *Journal) load(f file) error {
	s, err := scan(f, j.path)
	if err != nil {
		return err
	}
	j.file, j.state, j.head = f, s.state, s.head
	j.tail, j.size, j.seq, j.synced, j.sealed = s.tail, s.size, s.seq, s.synced, s.sealed
	return nil
}

// Shutdown makes everything durable and closes the file. Only the first call
// does something. The journal is closed even if an error is returned.
func (j *Journal) Shutdown() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if errors.Is(j.over, ErrClosed) {
		return nil
	}
	j.settle()
	var err error
	if j.over == nil {
		err = j.seal()
	}
	j.settle()
	j.over = ErrClosed
	if j.flusher != nil {
		j.flusher.Stop() // one that runs already finds j.over
	}
	j.cond.Broadcast()
	j.index.Lock()
	defer j.index.Unlock()
	return errors.Join(err, j.file.Close())
}

// seal says behind durable records that they are: damage to the last of them
// can then be told from a torn tail.
func (j *Journal) seal() error {
	if err := j.mend(); err != nil {
		return err
	}
	if j.sealed {
		return nil
	}
	if err := j.syncTo(j.seq); err != nil {
		return err
	}
	if err := j.append(record{typ: recSeal}); err != nil {
		return err
	}
	return j.syncTo(j.seq)
}

// Stats is the journal in numbers.
type Stats struct {
	Open    int   // intents under way, or left by a crash
	Kept    int   // intents kept for somebody to look at
	Images  int   // pages in the salvage area
	Pending int   // pages that the medium refused to take
	Bytes   int64 // of the file up to the last record
	Err     error // nil, or why no repair can be begun just now
}

// Stats is what `mendfs status` prints.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Stats{
		Open: len(j.state.open), Kept: len(j.state.kept),
		Images: j.state.salvaged, Pending: j.state.pending,
		Bytes: j.tail, Err: j.broken,
	}
}
