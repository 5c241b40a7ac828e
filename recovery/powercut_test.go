//go:build failpoints

package recovery

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/mediatest"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestPowerCuts lets the daemon die, and the power go, at random instants of
// random calls and of the replay that follows, and compares every byte of what
// the next mount shows with what it may show (cutOracle).
//
// MENDFS_CUTS is how many cuts at least; MENDFS_CUT_SEED the one life to live,
// as a failure names it. A life with one worker is the same each time, but for
// what the second's timers of journal and ledger do; one with several is not.
func TestPowerCuts(t *testing.T) {
	if text := os.Getenv("MENDFS_CUT_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		live(t, seed, true)
		return
	}
	cuts := int64(1000)
	if text := os.Getenv("MENDFS_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		cuts /= 5
	}
	var done tally
	t.Run("lives", func(t *testing.T) {
		for lane := range 2 {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				for done.cuts.Load() < cuts && !t.Failed() {
					seed := rand.Uint64()
					t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) { done.add(live(t, seed, false)) })
				}
			})
		}
	})
	t.Logf("%d cuts, %d of them of the power, %d in a replay; at %v", done.cuts.Load(), done.power.Load(), done.replays.Load(), done.where())
}

// tally counts cuts.
type tally struct {
	cuts, power, replays atomic.Int64
	mu                   sync.Mutex // guards at
	at                   map[string]int
}

func (c *tally) add(l *life) {
	c.cuts.Add(int64(l.cuts))
	c.power.Add(int64(l.power))
	c.replays.Add(int64(l.replays))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = map[string]int{}
	}
	for at, n := range l.at {
		c.at[at] += n
	}
}

func (c *tally) where() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for at, n := range c.at {
		out = append(out, fmt.Sprintf("%s: %d", at, n))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// life is a chain of worlds, each found by the next daemon.
type life struct {
	t       *testing.T
	seed    uint64
	profile string
	verify  bool
	workers int
	backing string // of the files' identities
	base    string // of the worlds' directories
	dirs    int
	random  *rand.Rand
	loud    bool
	over    atomic.Bool // it has failed
	story   []string    // of the world that is under way

	cuts, power, replays int
	at                   map[string]int // cuts by their instants
}

// live lives a life: calls, cuts, and what is found after each; from one of the
// cuts it goes on.
func live(t *testing.T, seed uint64, loud bool) *life {
	random := rand.New(rand.NewPCG(seed, 3))
	l := &life{
		t: t, seed: seed, random: random, loud: loud, at: map[string]int{},
		profile: []string{sim.DAX, sim.DAX518, sim.Line}[random.IntN(3)], verify: random.IntN(4) == 0,
		workers: 1 + 2*(random.IntN(4)/3), backing: t.TempDir(), base: scratch(t),
	}
	l.say("seed %d: profile %s, verify %v, %d workers", seed, l.profile, l.verify, l.workers)
	w := l.birth()
	for range 6 {
		w.mount()
		l.read(w, true)
		w.arm(4)
		l.work(w)
		kept := append(w.disarm(), w.rest())
		w.end()
		on := random.IntN(len(kept))
		var next *world
		for n, s := range kept {
			power := random.IntN(2) == 0
			l.cut(s, power, 0)
			if n == on {
				next = l.after(s, power, random)
			}
		}
		w = next
	}
	w.end()
	return l
}

// scratch is a directory in memory if there is one: what is durable is what the
// world says, not what the disk does.
func scratch(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "mendfs")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (l *life) newDir() string {
	l.dirs++
	dir := filepath.Join(l.base, fmt.Sprint(l.dirs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.fail(err)
	}
	return dir
}

func (l *life) say(format string, args ...any) {
	l.story = append(l.story, fmt.Sprintf(format, args...))
	if l.loud {
		l.t.Logf(format, args...)
	}
}

// fail ends the life. Only the test's own goroutine may call it.
func (l *life) fail(err error) {
	l.t.Helper()
	l.over.Store(true)
	l.t.Fatalf("%v\n%s\nMENDFS_CUT_SEED=%d", err, strings.Join(l.story, "\n"), l.seed)
}

// birth is a world with files, not yet mounted.
func (l *life) birth() *world {
	s := snapshot{boot: "boot 0", pmem: mediatest.NewPmem(), disk: newPowerDisk(), store: []byte{}, freed: map[uint64][]poisoned{}}
	for n := range 3 {
		name := fmt.Sprint("f", n)
		data := (&worker{random: l.random}).fresh(1 + l.random.Int64N(10*pg))
		fd, err := unix.Open(filepath.Join(l.backing, name), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			l.fail(err)
		}
		if err := s.pmem.Put(fd, data); err != nil {
			l.fail(err)
		}
		if err := unix.Ftruncate(fd, 4*largest); err != nil { // the simulator asks the real file whether poison lies within
			l.fail(err)
		}
		if err := unix.Close(fd); err != nil {
			l.fail(err)
		}
		grain := int64(ranges.SectorSize)
		if l.profile == sim.Line {
			grain = ranges.LineSize
		}
		s.oracles = append(s.oracles, newCutOracle(name, grain, data))
	}
	return l.after(s, false, l.random)
}

// work has the workers do some calls each.
func (l *life) work(w *world) {
	var workers sync.WaitGroup
	var mu sync.Mutex // guards the story and failed
	var failed error
	for n := range l.workers {
		seed := l.random.Uint64()
		workers.Go(func() {
			k := &worker{world: w, file: w.files[n], oracle: w.oracles[n], random: rand.New(rand.NewPCG(seed, 4))}
			for range 4 + k.random.IntN(8) {
				if l.workers == 1 {
					f := k.random.IntN(len(w.files))
					k.file, k.oracle, k.others = w.files[f], w.oracles[f], []int{(f + 1) % len(w.files)}
				}
				what, err := k.call()
				mu.Lock()
				l.say("  %s: %s", k.file.name, what)
				if err != nil && failed == nil {
					failed = fmt.Errorf("%s, %s: %w", k.file.name, what, err)
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	workers.Wait()
	if failed != nil {
		l.fail(failed)
	}
}

// cut looks at what a cut leaves. The mount that does may be cut itself.
func (l *life) cut(s snapshot, power bool, depth int) {
	l.cuts++
	l.at[strings.Split(s.at, " (")[0]]++
	if power {
		l.power++
	}
	if depth > 0 {
		l.replays++
	}
	told := len(l.story)
	l.say("%*scut %s, power=%v", 2*depth, "", s.at, power)
	random := rand.New(rand.NewPCG(l.random.Uint64(), 5))
	w := l.after(s, power, random)
	if again := depth < 3 && random.IntN(3) == 0; again {
		w.arm(1)
	}
	w.mount()
	kept := w.disarm()
	l.read(w, false)
	w.end()
	for _, s := range kept {
		l.cut(s, random.IntN(2) == 0, depth+1)
	}
	l.story = l.story[:told]
}

// read compares every byte with the oracles, and the intents that are left. If
// the life goes on, what is found is what the files hold from then on.
func (l *life) read(w *world, adopt bool) {
	for n, in := range w.journal.Intents() {
		l.fail(fmt.Errorf("intent %d is open after replay: %q %v", n, in.Path, in.Range))
	}
	for n, f := range w.files {
		st, err := f.below.Stat()
		w.check(err)
		got := make([]byte, st.Size)
		if n, err := f.Read(got, 0, Caller{}); err != nil || int64(n) != st.Size {
			l.fail(fmt.Errorf("reading %s: %d of %d: %w", f.name, n, st.Size, err))
		}
		lost, reinit := w.live(f)
		if err := w.oracles[n].check(got, lost, reinit); err != nil {
			l.fail(fmt.Errorf("%w; the ledger has lost %v, reinitialized %v", err, lost, reinit))
		}
		if !adopt {
			continue
		}
		poison := ranges.Of()
		for _, p := range w.medium.poisonOf(f.fd) {
			poison.Add(p.at)
		}
		below, err := w.medium.pmem.Content(f.fd)
		w.check(err)
		w.mu.Lock()
		w.oracles[n].adopt(got, lost, reinit, poison, below)
		w.mu.Unlock()
	}
}

// TestSectorReturnsAfterAPowerCut: what was lost with its sector can be had again when the
// power cut has taken the list of the poison with it, and it is the lines that are met.
func TestSectorReturnsAfterAPowerCut(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	l := &life{t: t, random: random, profile: sim.DAX518, workers: 1, backing: t.TempDir(), base: scratch(t)}
	w := l.birth()
	w.mount()
	l.read(w, true)
	k := &worker{world: w, file: w.files[0], oracle: w.oracles[0], random: random}
	if _, err := k.write(rng(0, 2*pg)); err != nil {
		t.Fatal(err)
	}
	want := k.now()
	lines := rng(pg+ranges.SectorSize-ranges.LineSize, 2*ranges.LineSize) // of two sectors
	w.inject(k.file, lines, true)
	k.oracle.struck(lines)
	l.read(w, true)
	if _, err := k.sync(); err != nil {
		t.Fatal(err)
	}
	if err := k.flush(); err != nil { // the image of the rest
		t.Fatal(err)
	}
	lost, _ := w.live(k.file)
	if lost.Bytes() <= lines.Len {
		t.Fatalf("no sector is lost, only %v", lost)
	}
	s := w.rest()
	w.end()

	w = l.after(s, true, random)
	below, page := w.medium.Open(w.files[0].fd), make([]byte, pg)
	for range 2 { // as replay looks at the page of an intent: the first line is on the list then
		if n, err := below.Pread(page, pg); err == nil && n == pg {
			t.Fatal("there is no poison")
		}
	}
	w.mount()
	l.read(w, false)
	if again, _ := w.live(w.files[0]); again.Bytes() >= lost.Bytes() {
		t.Errorf("lost is %v, and was %v: nothing returned", again, lost)
	}
	got := make([]byte, len(want))
	if _, err := w.files[0].Read(got, 0, Caller{}); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "after the cut", got, without(want, lines))
	w.end()
}
