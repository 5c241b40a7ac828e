// Package event is what happened, for people and programs: one struct, written
// as JSON Lines and as human text.
//
// The ledger is the truth about lost bytes; events are a view of it. Emitting
// never blocks and never fails. One goroutine writes the files; human text and
// subscribers are served at their own pace, and are told what they missed.
//
// # Repeats
//
// The first of an event is written at once. The same again (kind, device,
// inode, range, action, error) is only counted; after 10 seconds without a
// repeat, at most a minute after the first, a line with the same id says how
// many there were, from first to last. An outage is told once, until
// Log.OutageOver.
//
// 8,192 events may wait or be counted at a time. A further one ends the counting
// of the oldest that is written. Where all of them wait, because events come
// faster than files take them, it is dropped and counted, as is what a file does
// not take; one event "dropped" with the count is written as soon as there is
// room.
package event

import "time"

// Version is the schema version inside each event.
const Version = 1

// Kind is the word in the field "event".
type Kind string

const (
	Detected      Kind = "detected"       // poison is known, nothing was given up
	Recovered     Kind = "recovered"      // a read over poison was served
	Lost          Kind = "lost"           // bytes were given up
	Reinitialized Kind = "reinitialized"  // a write cleared the poison
	Cleared       Kind = "cleared"        // poison went away without us: the kernel, another tool
	Healed        Kind = "healed"         // lost content is back
	RepairFailed  Kind = "repair-failed"  // the medium would not be cleared, or the repair could not be made safe
	Replayed      Kind = "replayed"       // an intent left by a crash was finished or closed
	Conflict      Kind = "conflict"       // an intent left by a crash meets other data: nothing was written
	Outage        Kind = "outage"         // failures that are not poison
	MetadataError Kind = "metadata-error" // names, sizes or mappings can't be read
	Dropped       Kind = "dropped"        // the stream overflowed; the ledger has the ranges
)

// Event is one line of the event log (design: schema version 1). Offsets and
// lengths are bytes. A path that is not UTF-8 stands in PathB64 instead.
type Event struct {
	Version  int       `json:"version"`
	ID       string    `json:"id"` // ULID; lines with the same id tell of the same event, the last one is the newest
	Time     time.Time `json:"time"`
	Event    Kind      `json:"event"`
	Path     string    `json:"path,omitempty"`
	PathB64  []byte    `json:"path_b64,omitempty"`
	FS       string    `json:"fs,omitempty"`
	Dev      string    `json:"dev,omitempty"` // "major:minor"
	Ino      uint64    `json:"ino,omitempty"`
	Offset   int64     `json:"offset"`
	Length   int64     `json:"length"`
	Source   string    `json:"source,omitempty"`   // kernel, badblocks, simulated
	Detected string    `json:"detected,omitempty"` // eio, efault, short-read, badblocks, scan
	Salvaged int64     `json:"salvaged"`           // bytes kept of the pages touched
	Pid      uint32    `json:"pid,omitempty"`
	UID      *uint32   `json:"uid,omitempty"` // absent for writeback, which has no user
	Comm     string    `json:"comm,omitempty"`
	Device   string    `json:"device,omitempty"`
	Sector   *int64    `json:"sector,omitempty"`
	// With a loss: the unit in bytes at which the medium could be asked, and why
	// that was so, where there is more than one way.
	Granularity int64  `json:"granularity,omitempty"`
	Why         string `json:"why,omitempty"`
	// With a page that was cleared for all who share it: the other files, and what each
	// of them lost.
	Sharers []string `json:"sharers,omitempty"`

	Action string     `json:"action,omitempty"` // what mendfs did: zero-filled, passed-through, page-written, ...
	Error  string     `json:"error,omitempty"`
	Count  int64      `json:"count"`
	First  *time.Time `json:"first,omitempty"` // with count > 1: when the first of them happened
	Last   *time.Time `json:"last,omitempty"`  // with count > 1: when the last of them happened
	Next   string     `json:"next,omitempty"`  // the command to run, or what to do
}
