package recovery

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const pg = ranges.PageSize

// rig is an engine over one backing file, which can crash and be mounted again.
type rig struct {
	t        *testing.T
	backing  string // directory
	state    string // directory; a crash goes on with a copy of it
	name     string // of the file
	profile  string // of the simulation; "" is wrap over the real file
	wrap     func(media.Medium) media.Medium
	rules    string // semantics
	readOnly bool
	verify   bool // writes
	breaker  int  // pages; 0 as New has it

	root    int
	real    *media.Real
	sim     *sim.Medium
	medium  media.Medium
	journal *journal.Journal
	ledger  *ledger.Ledger
	events  *event.Log
	engine  *Engine
	fd      int
	ino     *Inode
	file    *File
}

func newRig(t *testing.T, profile string, size int) *rig {
	t.Helper()
	r := &rig{t: t, backing: t.TempDir(), state: t.TempDir(), name: "file", profile: profile, rules: "recover", fd: -1}
	if err := os.WriteFile(filepath.Join(r.backing, r.name), pattern(size), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.stop)
	return r
}

// pattern is content in which no byte is zero and no two lines are equal.
func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(1 + (i*7+i/64*13+i/4096*5)%255)
	}
	return b
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// start mounts: state opened, replayed, the file open.
func (r *rig) start() *rig {
	r.t.Helper()
	r.startEngine()
	r.check(r.engine.Replay())
	r.open()
	return r
}

func (r *rig) startEngine() {
	r.t.Helper()
	var err error
	r.root, err = unix.Open(r.backing, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	r.check(err)
	fs, err := fileid.Filesystem(r.root)
	r.check(err)
	rootID, err := fileid.Of(r.root)
	r.check(err)
	r.real = media.New(r.root)
	r.medium = r.real
	if r.profile != "" {
		r.sim, err = sim.New(sim.Options{Profile: r.profile, Store: filepath.Join(r.state, "poison.jsonl"), Root: r.root, Below: r.real})
		r.check(err)
		r.medium = r.sim
	}
	if r.wrap != nil {
		r.medium = r.wrap(r.medium)
	}
	r.journal, err = journal.Open(filepath.Join(r.state, "journal"), fs)
	r.check(err)
	r.ledger, err = ledger.Open(filepath.Join(r.state, "ledger.db"), fs, rootID)
	r.check(err)
	r.events, err = event.New(event.Options{Path: filepath.Join(r.state, "events.jsonl")})
	r.check(err)
	rules, err := SemanticsByName(r.rules)
	r.check(err)
	r.engine, err = New(Config{Medium: r.medium, Journal: r.journal, Ledger: r.ledger, Events: r.events,
		Root: r.root, FS: fs, Semantics: rules, ReadOnly: r.readOnly, VerifyWrites: r.verify, Breaker: r.breaker})
	r.check(err)
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	flags := unix.O_RDWR
	if r.readOnly {
		flags = unix.O_RDONLY
	}
	r.fd, err = unix.Open(r.path(), flags|unix.O_CLOEXEC, 0)
	r.check(err)
	r.ino = r.engine.NewInode(r.fd)
	r.file = r.engine.Open(r.ino, r.fd)
}

func (r *rig) path() string { return filepath.Join(r.backing, r.name) }

// stop unmounts.
func (r *rig) stop() {
	if r.engine == nil {
		return
	}
	if err := r.engine.Close(); err != nil {
		r.t.Errorf("closing the engine: %v", err)
	}
	r.drop()
}

// drop closes all without flushing anything that a crash would lose, as far as
// that is possible in a process that lives on.
func (r *rig) drop() {
	for _, close := range []func() error{
		r.closeFile, r.journal.Shutdown, r.ledger.Close, r.events.Close,
		func() error {
			if r.sim != nil {
				return r.sim.Close()
			}
			return nil
		}, r.real.Close,
		func() error { return unix.Close(r.root) },
	} {
		if err := close(); err != nil {
			r.t.Errorf("stopping: %v", err)
		}
	}
	r.engine = nil
}

func (r *rig) closeFile() error {
	fd := r.fd
	r.fd = -1
	if fd < 0 {
		return nil // the crash came before the file was opened
	}
	return unix.Close(fd)
}

func (r *rig) remount() {
	r.t.Helper()
	r.stop()
	r.start()
}

// crash is the death of the process at this instant: the state directory as the
// kernel has it now is what the next start finds.
func (r *rig) crash() {
	r.t.Helper()
	copied := r.t.TempDir()
	entries, err := os.ReadDir(r.state)
	r.check(err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(r.state, e.Name()))
		r.check(err)
		r.check(os.WriteFile(filepath.Join(copied, e.Name()), b, 0o600))
	}
	r.drop()
	r.state = copied
}

// crashAt runs fn and crashes when the repair reaches s for the nth time; it
// reports whether that happened.
func (r *rig) crashAt(s failpoint.Step, nth int, fn func()) (crashed bool) {
	r.t.Helper()
	type death struct{}
	func() {
		defer func() {
			if v := recover(); v != nil {
				if _, ok := v.(death); !ok {
					panic(v)
				}
				crashed = true
			}
		}()
		r.onStep(func(at failpoint.Step) {
			if at == s {
				if nth--; nth == 0 {
					panic(death{})
				}
			}
		})
		fn()
	}()
	r.onStep(nil)
	if crashed {
		r.crash()
	}
	return crashed
}

// poison injects into the simulation.
func (r *rig) poison(at ranges.Range, latent bool) {
	r.t.Helper()
	id, err := fileid.Of(r.fd)
	r.check(err)
	_, err = r.sim.Inject(id, r.name, r.fd, at, latent)
	r.check(err)
}

// read reads through the engine, and fails the test on an error or short count.
func (r *rig) read(off, n int64) []byte {
	r.t.Helper()
	b := make([]byte, n)
	got, err := r.file.Read(b, off, Caller{Pid: 1, UID: 2, Known: true})
	if err != nil || int64(got) != n {
		r.t.Fatalf("read [%d +%d) = %d, %v", off, n, got, err)
	}
	return b
}

func (r *rig) write(off int64, b []byte) {
	r.t.Helper()
	n, err := r.file.Write(b, off, false, Caller{})
	if err != nil || n != len(b) {
		r.t.Fatalf("write [%d +%d) = %d, %v", off, len(b), n, err)
	}
}

// below is the file as any other program sees it, without poison.
func (r *rig) below() []byte {
	r.t.Helper()
	b, err := os.ReadFile(r.path())
	r.check(err)
	return b
}

func (r *rig) live() (lost, reinit *ranges.Set) {
	r.t.Helper()
	id, err := fileid.Of(r.fd)
	r.check(err)
	lost, reinit, err = r.ledger.Live(id.Key())
	r.check(err)
	return lost, reinit
}

// wantBytes compares and names the first difference.
func wantBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// without is b with zeros in the given ranges.
func without(b []byte, zeros ...ranges.Range) []byte {
	b = bytes.Clone(b)
	for _, z := range zeros {
		clear(b[z.Off:z.End()])
	}
	return b
}

func rng(off, n int64) ranges.Range { return ranges.Range{Off: off, Len: n} }

func wantSet(t *testing.T, what string, got *ranges.Set, want ...ranges.Range) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(ranges.Of(want...)); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}

// told is the event log of this mount and those before it; no event follows.
func (r *rig) told() string {
	r.t.Helper()
	r.check(r.events.Close())
	b, err := os.ReadFile(filepath.Join(r.state, "events.jsonl"))
	r.check(err)
	return string(b)
}

// journalAgain opens the journal of the state directory again.
func journalAgain(r *rig, fs string) (*journal.Journal, error) {
	return journal.Open(filepath.Join(r.state, "journal"), fs)
}
