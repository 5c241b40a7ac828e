//go:build failpoints

package recovery

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// A world is a machine with a mount, of which snapshots are taken at instants
// while it goes on: each is what a daemon's death, or a power cut, at that
// instant leaves behind. So one run is cut many times. What an instant is says
// world.instant.
type world struct {
	t       testing.TB
	life    *life
	boot    string
	medium  *powerMedium
	disk    *powerDisk
	dir     string // of ledger, simulated poison and events
	root    int
	engine  *Engine
	journal *journal.Journal
	ledger  *ledger.Ledger
	events  *event.Log
	files   []*worldFile

	// mu is held over each change of anything that outlives the daemon, and
	// guards what follows. The engine's locks are taken before it.
	mu      sync.Mutex
	random  *rand.Rand // for what happens in this world
	stored  []byte     // the ledger's file after its last transaction
	want    int        // snapshots to be kept
	seen    int        // instants since arm
	kept    []snapshot
	oracles []*cutOracle
}

// worldFile is a file of the mount, open.
type worldFile struct {
	name string
	fd   int
	*File
}

// knowsBad reports whether the engine knows the page to be bad.
func (f *worldFile) knowsBad(page ranges.Range) bool {
	if f.File == nil {
		return false
	}
	d := f.ino.damage.Load()
	return d != nil && d.isBad(page)
}

// cleared is told of poison that is gone, and wants an open intent wherever the
// engine knew of it. w.mu is held.
func (w *world) cleared(fd int, at ranges.Range) {
	id, err := fileid.Of(fd)
	w.medium.must(err)
	for _, in := range w.journal.Intents() {
		if in.File.Key() == id.Key() && in.Range.Contains(at) && !w.ledger.Closed(in.ID) {
			return
		}
	}
	for n, f := range w.files {
		if other, err := fileid.Of(f.fd); err != nil || other.Key() != id.Key() {
			continue
		}
		if f.knowsBad(ranges.Page(at.Off)) {
			w.t.Errorf("%s: known poison was cleared in %v, and there is no intent\n%s", f.name, at, debug.Stack())
		}
		w.oracles[n].undefined.Add(at)
	}
}

// snapshot is all that outlives the daemon, and what may be found in it.
type snapshot struct {
	at      string
	boot    string
	pmem    *mediatest.Pmem
	poison  [][]poisoned // of each file, by offsets in the file
	blocks  []map[int64]uint64
	freed   map[uint64][]poisoned
	store   []byte
	disk    *powerDisk
	ledger  []byte
	oracles []*cutOracle
}

// instant makes a change, in front of which and behind which the daemon may
// die and the power may go.
func (w *world) instant(name string, change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offer("before " + name)
	change()
	w.offer("after " + name)
}

// step is the instant at a failpoint.
func (w *world) step(s failpoint.Step) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.life.over.Load() {
		return // what has failed is left as it is
	}
	if s == failpoint.LedgerWritten {
		w.readLedger() // no transaction is under way: the ledger calls us
	}
	w.offer("at " + string(s))
}

func (w *world) readLedger() {
	b, err := os.ReadFile(filepath.Join(w.dir, "ledger.db"))
	if err != nil {
		w.t.Errorf("reading the ledger: %v", err)
	}
	w.stored = b
}

// arm has n of the instants to come kept, each with the same probability.
func (w *world) arm(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want, w.seen, w.kept = n, 0, nil
}

// disarm returns the snapshots.
func (w *world) disarm() []snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.kept
	w.want, w.kept = 0, nil
	return kept
}

// rest is a snapshot while nothing happens.
func (w *world) rest() snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snapshot("at rest")
}

func (w *world) offer(at string) {
	if w.want == 0 {
		return
	}
	w.seen++
	at = fmt.Sprintf("%s (instant %d)", at, w.seen)
	if len(w.kept) < w.want {
		w.kept = append(w.kept, w.snapshot(at))
	} else if n := w.random.IntN(w.seen); n < w.want {
		w.kept[n] = w.snapshot(at)
	}
}

func (w *world) snapshot(at string) snapshot {
	s := snapshot{at: at, boot: w.boot, pmem: w.medium.pmem.Clone(), disk: w.disk.clone(), ledger: w.stored, freed: copyFreed(w.medium.freed)}
	for _, f := range w.files {
		s.poison = append(s.poison, w.medium.poisonOf(f.fd))
		s.blocks = append(s.blocks, w.medium.blocks(f.fd))
	}
	for n, o := range w.oracles {
		s.oracles = append(s.oracles, o.clone())
		s.oracles[n].keepUnder(s.poison[n])
		if o.pending != nil {
			s.at += fmt.Sprintf(", %s being changed in %v, bad there %v", o.name, o.at, o.bad)
		}
	}
	var err error
	if s.store, err = os.ReadFile(filepath.Join(w.dir, "poison.jsonl")); err != nil {
		w.t.Errorf("reading the poison: %v", err)
	}
	return s
}

// after is the world that the next daemon finds: as it was, or as a power cut
// leaves it.
func (l *life) after(s snapshot, power bool, random *rand.Rand) *world {
	w := &world{t: l.t, life: l, boot: s.boot, random: rand.New(rand.NewPCG(random.Uint64(), 6)), stored: s.ledger, dir: l.newDir()}
	w.medium = &powerMedium{pmem: s.pmem, instant: w.instant, lines: l.profile == sim.Line, freed: copyFreed(s.freed)}
	w.medium.cleared = w.cleared
	w.disk = s.disk.clone()
	for _, o := range s.oracles {
		w.oracles = append(w.oracles, o.clone())
	}
	store := s.store
	if power {
		w.boot = fmt.Sprintf("boot %d", random.Uint64())
		w.medium.pmem, w.disk, store = s.pmem.Cut(random), w.disk.cut(random), nil
		for _, o := range w.oracles {
			o.power = true
		}
	} else {
		w.medium.pmem = s.pmem.Clone()
	}
	w.disk.instant = w.instant
	for name, b := range map[string][]byte{"ledger.db": s.ledger, "poison.jsonl": store} {
		if b != nil {
			w.check(os.WriteFile(filepath.Join(w.dir, name), b, 0o600))
		}
	}
	w.power(s, power)
	return w
}

func copyFreed(freed map[uint64][]poisoned) map[uint64][]poisoned {
	out := map[uint64][]poisoned{}
	for id, p := range freed {
		out[id] = slices.Clone(p)
	}
	return out
}

// power opens the files and the medium; after a power cut the poison is that of
// the blocks that are in use now, and the list of it is read anew.
func (w *world) power(s snapshot, cut bool) {
	var err error
	w.root, err = unix.Open(w.life.backing, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	w.check(err)
	for _, o := range w.oracles {
		fd, err := unix.Open(filepath.Join(w.life.backing, o.name), unix.O_RDWR|unix.O_CLOEXEC, 0)
		w.check(err)
		w.files = append(w.files, &worldFile{name: o.name, fd: fd})
	}
	w.medium.sim, err = sim.New(sim.Options{Profile: w.life.profile, Store: filepath.Join(w.dir, "poison.jsonl"), Root: w.root, Below: w.medium.pmem})
	w.check(err)
	w.medium.Medium = w.medium.sim
	if !cut {
		return
	}
	for n, f := range w.files {
		st, err := w.medium.pmem.Open(f.fd).Stat()
		w.check(err)
		blocks := w.medium.blocks(f.fd)
		for _, page := range slices.Sorted(maps.Keys(blocks)) {
			for _, p := range s.poisonOf(n, page, blocks[page]) {
				delete(w.medium.freed, blocks[page]) // the simulator has it now
				if at := p.at.Intersect(ranges.Between(0, st.Size)); !at.Empty() {
					w.inject(f, at, p.latent)
				}
			}
		}
	}
}

// poisonOf is the poison of a block that is now the page's, in file offsets.
func (s *snapshot) poisonOf(file int, page int64, id uint64) []poisoned {
	var out []poisoned
	if s.blocks[file][page] == id {
		for _, p := range s.poison[file] {
			if ranges.Page(page).Contains(p.at) {
				out = append(out, p)
			}
		}
		return out
	}
	for _, p := range s.freed[id] {
		out = append(out, poisoned{p.at.Shift(page), p.latent})
	}
	return out
}

func (w *world) inject(f *worldFile, at ranges.Range, latent bool) {
	id, err := fileid.Of(f.fd)
	w.check(err)
	_, err = w.medium.sim.Inject(id, f.name, f.fd, at, latent)
	w.check(err)
}

// mount starts a daemon in the world. Replay may be cut too.
func (w *world) mount() {
	w.t.Helper()
	fs, err := fileid.Filesystem(w.root)
	w.check(err)
	rootID, err := fileid.Of(w.root)
	w.check(err)
	w.journal, err = journal.OpenOn(w.disk, "journal", fs)
	w.check(err)
	w.ledger, err = ledger.Open(filepath.Join(w.dir, "ledger.db"), fs, rootID)
	w.check(err)
	w.ledger.Points.Set(w.step)
	if w.stored == nil {
		w.readLedger()
	}
	w.events, err = event.New(event.Options{Path: filepath.Join(w.dir, "events.jsonl")})
	w.check(err)
	rules, err := SemanticsByName("recover")
	w.check(err)
	w.engine, err = New(Config{Medium: w.medium, Journal: w.journal, Ledger: w.ledger, Events: w.events,
		Root: w.root, FS: fs, Semantics: rules, VerifyWrites: w.life.verify})
	w.check(err)
	w.engine.boot = w.boot
	w.engine.at.Set(w.step)
	for _, in := range w.journal.Intents() {
		w.life.say("  mount finds intent %d: %s %v, image %v, closed %v, of %s", in.ID, in.Path, in.Range, in.Image != nil, w.ledger.Closed(in.ID), in.Boot)
	}
	w.check(w.engine.Replay())
	for _, f := range w.files {
		f.File = w.engine.Open(w.engine.NewInode(f.fd), f.fd)
	}
}

// end unmounts, and takes the world down.
func (w *world) end() {
	if w.engine != nil {
		w.check(w.engine.Close())
		w.engine.at.Set(nil)
		w.check(w.journal.Shutdown())
		w.check(w.ledger.Close())
		w.check(w.events.Close())
	}
	w.check(w.medium.sim.Close())
	for _, f := range w.files {
		w.check(unix.Close(f.fd))
	}
	w.check(unix.Close(w.root))
	w.check(os.RemoveAll(w.dir))
}

// check ends the life on an error.
func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.life.fail(err)
	}
}

// live is the ledger's live rows of a file.
func (w *world) live(f *worldFile) (lost, reinit *ranges.Set) {
	id, err := fileid.Of(f.fd)
	w.check(err)
	lost, reinit, err = w.ledger.Live(id.Key())
	w.check(err)
	return lost, reinit
}
