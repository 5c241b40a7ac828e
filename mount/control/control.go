// Package control is the socket between a running mount and the verbs that ask
// about it: HTTP with JSON over the Unix socket control.sock in the state
// directory.
//
// The socket has mode 0600, and each request's peer is asked of the kernel
// (SO_PEERCRED): root and the user who mounted are served, all others get 403.
//
//	GET    /v1/status                       {"version":1,"status":[Status]}
//	GET    /v1/lost?path=P&all=1            {"version":1,"lost":[ledger.Row...]}
//	GET    /v1/pending?path=P               {"version":1,"pending":[Pending...]}
//	GET    /v1/scan?path=P                  {"version":1,"scan":[Scan]}
//	DELETE /v1/pending/{id}                 204
//	GET    /v1/events?since=RFC3339&follow=1  JSON Lines of event.Event
//	POST   /v1/inject                       InjectRequest -> {"version":1,"injections":[Injection...]}
//	GET    /v1/inject                       {"version":1,"injections":[Injection...]}
//	DELETE /v1/inject/{id}, /v1/inject      204
//
// A refusal is {"version":1,"error":{...}} with the fields of Error. Paths are
// relative to the root of the mount; "" and "." stand for all of it. In bodies a
// path that is not UTF-8 stands, as base64, in path_b64 instead of path.
package control

import (
	"context"
	"time"
	"unicode/utf8"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Version is the schema version of every answer.
const Version = 1

// Socket is the name of the socket in a state directory.
const Socket = "control.sock"

// Backend answers the questions; all methods may be called concurrently. The
// running mount is one, a Client is another.
type Backend interface {
	Status(ctx context.Context) (Status, error)
	// EachLost hands each lost range to each, file by file: there may be millions.
	EachLost(ctx context.Context, q LostQuery, each func(ledger.Row) error) error
	Pending(ctx context.Context, path string) ([]Pending, error)
	// Drop forgets, for good, the image that a conflict has left: the Pending
	// with this ID and Why Conflict. All others are refused.
	Drop(ctx context.Context, id uint64) error
	// Scan is what the list of media errors has at and below path, without reading
	// data. It may take as long as a walk over all files.
	Scan(ctx context.Context, path string) (Scan, error)
	// Events hands each line (without its newline) to line, oldest first. With
	// q.Follow it goes on until ctx ends or line fails; ctx ending is no error.
	Events(ctx context.Context, q EventQuery, line func([]byte) error) error

	Inject(ctx context.Context, r InjectRequest) ([]Injection, error)
	Injections(ctx context.Context) ([]Injection, error)
	RemoveInjection(ctx context.Context, id string) error
	ClearInjections(ctx context.Context) error
}

// Status is one mount, or one state directory without a running mount.
type Status struct {
	Running         bool      `json:"running"`
	Dead            bool      `json:"dead,omitempty"`  // the daemon is gone and the mount is still there; of the rest, only Mountpoint, Backing and Owner are known
	Owner           *int      `json:"owner,omitempty"` // the uid of who mounted; nil when no mount is there
	Mountpoint      string    `json:"mountpoint,omitempty"`
	Backing         string    `json:"backing"`
	OverMounted     bool      `json:"over_mounted"`
	State           string    `json:"state"`
	FS              string    `json:"fs"`
	Pid             int       `json:"pid,omitempty"`
	Started         time.Time `json:"started,omitzero"`
	Semantics       string    `json:"semantics,omitempty"`
	Simulate        string    `json:"simulate,omitempty"`
	Repair          string    `json:"repair,omitempty"` // on-write, eager
	ReadOnly        bool      `json:"read_only,omitempty"`
	ReadOnlyNow     bool      `json:"read_only_now,omitempty"`     // by a remount, until the next
	BackingReadOnly bool      `json:"backing_read_only,omitempty"` // the filesystem below can't be written now
	AllowOther      bool      `json:"allow_other,omitempty"`
	EventLog        string    `json:"event_log,omitempty"`

	// Protection is what programs may meet unprotected; nil when no mount is running.
	Protection *Protection `json:"protection,omitempty"`

	// Held is what is in use; nil when no mount is running.
	Held *Held `json:"held,omitempty"`

	// Sandbox is how the serving process is confined; nil when none is running.
	Sandbox *Sandbox `json:"sandbox,omitempty"`

	Lost          Count `json:"lost"`          // the poison is still there
	Reinitialized Count `json:"reinitialized"` // media clean, content zero
	OpenIntents   int   `json:"open_intents"`  // > 0 without a running mount: do not use the backing directly before mounting
	KeptImages    int   `json:"kept_images"`   // repairs that were given up; their images wait in the journal

	// Trouble is why records can't be kept, or repairs not begun, just now.
	Trouble []string `json:"trouble,omitempty"`

	// Engine is the recovery engine's own account (recovery.Status; a Client
	// has what its JSON decodes to); nil when no mount is running.
	Engine any `json:"engine,omitempty"`
}

// Held is what the kernel and the programs above hold at the moment.
type Held struct {
	Inodes    int `json:"inodes"`    // files known to the kernel, the root included
	Handles   int `json:"handles"`   // open files and directories
	Fds       int `json:"fds"`       // descriptors for both
	Abandoned int `json:"abandoned"` // requests whose callers were killed and that still wait for the backing filesystem
}

// Protection is what the kernel serves by itself, past mendfs.
type Protection struct {
	Mode        string        `json:"mode"`                  // full, rw, known
	Passthrough int           `json:"passthrough"`           // files that are open so now
	Refused     uint64        `json:"refused,omitempty"`     // opens that the kernel would not take since the mount: served in full
	Unprotected []Unprotected `json:"unprotected,omitempty"` // files with known poison that programs have to open again
}

// Unprotected is a file with known poison that was opened, or mapped, before
// that was known, and is still.
type Unprotected struct {
	Path    string `json:"path,omitempty"`
	PathB64 []byte `json:"path_b64,omitempty"` // see Wire
	Opens   int    `json:"opens"`              // 0: all closed, and maybe still mapped
	Next    string `json:"next"`
}

// Name is the path, UTF-8 or not.
func (u Unprotected) Name() string { return name(u.Path, u.PathB64) }

// Sandbox is what a serving process can't do.
type Sandbox struct {
	Capabilities []string `json:"capabilities"`  // what it has left of root's rights
	NoNewPrivs   bool     `json:"no_new_privs"`  // no program that it starts can get more
	Landlock     int      `json:"landlock"`      // the version of the rules that keep it to its files; 0: none do
	Why          string   `json:"why,omitempty"` // why no rules do
}

// Count is a number of ranges and the bytes in them.
type Count struct {
	Ranges int64 `json:"ranges"`
	Bytes  int64 `json:"bytes"`
}

// LostQuery says which lost ranges are wanted.
type LostQuery struct {
	Path string // a file, or a directory with all below it; "" for all
	All  bool   // with history: overwritten and healed ranges too
}

// EventQuery says which events are wanted.
type EventQuery struct {
	Since  time.Time // zero: from the oldest that is kept
	Follow bool
}

// Pending is a repair that is not finished: its page must not be used through
// the backing directory.
type Pending struct {
	ID      uint64         `json:"id"` // of the intent; 0 for a page that the medium refused to take
	File    fileid.ID      `json:"file"`
	Path    string         `json:"path,omitempty"`
	PathB64 []byte         `json:"path_b64,omitempty"` // see Wire
	Range   ranges.Range   `json:"range"`
	Size    int64          `json:"size,omitempty"` // of the file, when the repair is done
	Time    time.Time      `json:"time,omitzero"`
	Kept    bool           `json:"kept"`              // given up (conflict, or refused by the medium); only the image remains
	Why     Why            `json:"why,omitempty"`     // why it is not finished
	Next    string         `json:"next,omitempty"`    // what to do about it
	Image   []byte         `json:"image,omitempty"`   // base64 in JSON; what the page shall hold
	Missing []ranges.Range `json:"missing,omitempty"` // bytes of Image that could not be had
	Unread  string         `json:"unread,omitempty"`  // why Image is not here: the state disk does not give it back
}

// Why is why a repair is not finished.
type Why string

const (
	UnderWay    Why = "under-way"   // a running mount is at it
	Interrupted Why = "interrupted" // a crash came between; the next mount finishes it
	Conflict    Why = "conflict"    // after a crash other data was in the page; only its image is kept
	Refused     Why = "refused"     // the medium does not take the page; its image is served
)

// InjectRequest asks for poison on a simulated mount: at Ranges of the file
// Path, or, with Random > 0, at that many places in the files below the
// directory Path, chosen by Seed.
type InjectRequest struct {
	Path        string         `json:"path"`
	PathB64     []byte         `json:"path_b64,omitempty"` // only between Client and Server, see Wire
	Ranges      []ranges.Range `json:"ranges,omitempty"`
	Random      int            `json:"random,omitempty"`
	Seed        uint64         `json:"seed,omitempty"`
	Latent      bool           `json:"latent,omitempty"`
	KeepCache   bool           `json:"keep_cache,omitempty"`
	OnRealFiles bool           `json:"on_real_files,omitempty"` // the backing was not empty when it was first mounted, and that is all right
}

// Injection is poison that was injected.
type Injection struct {
	ID        string         `json:"id"`
	Path      string         `json:"path,omitempty"` // when it was injected
	PathB64   []byte         `json:"path_b64,omitempty"`
	File      fileid.ID      `json:"file"`
	Range     ranges.Range   `json:"range"`     // as ordered
	Latent    bool           `json:"latent"`    // some of what remains is known to nobody yet
	Remaining []ranges.Range `json:"remaining"` // what no write has cleared
}

// Name is the path, UTF-8 or not.
func (p Pending) Name() string { return name(p.Path, p.PathB64) }

// Name is the path, UTF-8 or not.
func (i Injection) Name() string { return name(i.Path, i.PathB64) }

// Wire is a path as JSON carries it: one that is not UTF-8 would be changed
// there, and goes as bytes (base64).
func Wire(path string) (text string, raw []byte) {
	if utf8.ValidString(path) {
		return path, nil
	}
	return "", []byte(path)
}

func name(text string, raw []byte) string {
	if raw != nil {
		return string(raw)
	}
	return text
}

// Exit codes that an Error carries (as fsck).
const (
	ExitOperational = 8
	ExitUsage       = 16
)

// Error is a refusal: one line that says what happened and where, and what to
// do next.
type Error struct {
	Exit int    `json:"exit"` // ExitOperational or ExitUsage
	Msg  string `json:"message"`
	Next string `json:"next,omitempty"`
	Err  error  `json:"-"` // the cause, for errors.Is
}

func (e *Error) Error() string {
	text := e.Msg
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Next != "" {
		text += "; " + e.Next
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Flat is e with the cause's text in the message, fit for JSON.
func (e *Error) Flat() *Error {
	flat := &Error{Exit: e.Exit, Msg: e.Msg, Next: e.Next}
	if e.Err != nil {
		flat.Msg += ": " + e.Err.Error()
	}
	return flat
}
