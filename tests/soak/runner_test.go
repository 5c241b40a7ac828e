package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	workers = 3
	writers = 2
	readers = 1
)

// soak is a mount with its children.
type soak struct {
	t        *testing.T
	m        *harness.Mount
	profile  string
	seed     uint64
	ops      int
	dir      string // logs and the bare files; left behind if the test fails
	random   *rand.Rand
	children []*child
	progress bool
	began    time.Time

	hit    [sharedFiles]*ranges.Set // what poison of the shared files may cost
	shared int                      // injections there
}

func newSoak(t *testing.T, profile string, seed uint64, ops int) *soak {
	t.Helper()
	dir, err := os.MkdirTemp("", "soak")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the logs are in %s; again: make soak SEED=%d OPS=%d PROFILE=%s", dir, seed, ops, profile)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	over := seed%2 == 1
	m := harness.New(t, harness.Config{Over: over, Flags: []string{"--simulate", profile, "--event-log", filepath.Join(dir, "events.jsonl")}})
	s := &soak{t: t, m: m, profile: profile, seed: seed, ops: ops, dir: dir,
		random: rand.New(rand.NewPCG(seed, 99)), began: time.Now()}
	for n := range s.hit {
		s.hit[n] = ranges.Of()
	}
	if err := fillShared(s.m.At); err != nil {
		t.Fatal(err)
	}
	for n := range workers {
		s.start(fmt.Sprint("worker", n), uint64(n))
	}
	for n := range writers {
		s.start(fmt.Sprint("shared-writer", n), uint64(10+n))
	}
	for n := range readers {
		s.start(fmt.Sprint("shared-reader", n), uint64(20+n))
	}
	return s
}

func (s *soak) start(rel string, number uint64) {
	s.t.Helper()
	c, err := startChild(s.t, place{
		At: s.m.At, State: s.m.State, Backing: s.m.Backing, Rel: rel, Bare: filepath.Join(s.dir, "bare"), Logs: s.dir,
		Profile: s.profile, Seed: s.seed, Worker: number, Killing: filepath.Join(s.dir, "killing"),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.children = append(s.children, c)
}

// rage does all operations in a number of rounds, with a remount after each.
func (s *soak) rage(rounds int) {
	s.t.Helper()
	each := max(1, s.ops/rounds/len(s.children))
	for round := range rounds {
		s.round(each, round%2 == 1)
	}
	s.all("check", "")
	s.checkShared()
	s.all("pause", "")
	s.m.Stop()
	rows := filepath.Join(s.dir, "lost.json")
	r := harness.Mendfs(s.t, "lost", "--all", "--json", "--state", s.m.State)
	if r.Exit&^5 != 0 {
		s.t.Fatalf("mendfs lost: exit %d: %s", r.Exit, r.Stderr)
	}
	if err := os.WriteFile(rows, []byte(r.Stdout), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.all("below", rows)
	s.checkSharedBelow(rows)
	s.m.Start()
	s.all("restarted", restart)
	s.all("check", "")
	s.say()
	s.all("pause", "")
}

// round is some operations of every child, then a clean remount or a kill.
func (s *soak) round(each int, kills bool) {
	s.t.Helper()
	const order = 250
	for left := each; left > 0; left -= order {
		if kills && left <= order {
			s.killWithin(fmt.Sprint("run ", order))
			return
		}
		run := fmt.Sprint("run ", min(left, order))
		answers := s.send(run)
		s.poisonShared()
		s.collect(run, answers)
		if s.progress && left/order%20 == 0 {
			s.say()
		}
	}
	s.all("check", "")
	s.checkShared()
	s.all("pause", "")
	s.m.Restart()
	s.all("restarted", restart)
	s.all("check", "")
}

// killWithin kills the mount while the children do something.
func (s *soak) killWithin(order string) {
	s.t.Helper()
	answers := s.send(order)
	time.Sleep(time.Duration(s.random.IntN(300)) * time.Millisecond)
	if err := os.WriteFile(s.children[0].place.Killing, nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.m.Kill()
	s.collect(order, answers)
	s.all("pause", "")
	if err := os.Remove(s.children[0].place.Killing); err != nil {
		s.t.Fatal(err)
	}
	s.m.Start()
	s.all("restarted", kill)
	s.all("check", "")
}

// all has every child do something, at once.
func (s *soak) all(verb, argument string) {
	s.t.Helper()
	s.collect(verb, s.send(verb+" "+argument))
}

func (s *soak) send(order string) []chan error {
	answers := make([]chan error, len(s.children))
	for i, c := range s.children {
		answers[i] = make(chan error, 1)
		go func() { answers[i] <- c.obey(order) }() // ends with the answer, or the child
	}
	return answers
}

func (s *soak) collect(order string, answers []chan error) {
	s.t.Helper()
	var all error
	for _, answer := range answers {
		all = errors.Join(all, <-answer)
	}
	if all != nil {
		s.t.Fatalf("seed %d, %s: %v", s.seed, order, all)
	}
}

// poisonShared hurts the shared files while they are read and written.
func (s *soak) poisonShared() {
	s.t.Helper()
	unit := int64(ranges.SectorSize)
	if s.profile == "line" {
		unit = line
	}
	for range s.random.IntN(4) {
		time.Sleep(time.Duration(s.random.IntN(30)) * time.Millisecond)
		file := s.random.IntN(sharedFiles)
		r := ranges.Range{Off: s.random.Int64N(sharedSize), Len: 1 + s.random.Int64N(700)}.Intersect(ranges.Range{Len: sharedSize})
		s.hit[file].Add(r.Widen(unit))
		s.shared++
		_, err := control.Dial(s.m.State).Inject(context.Background(), control.InjectRequest{
			Path: sharedName(file), Ranges: []ranges.Range{r}, OnRealFiles: true,
			Latent: s.random.IntN(2) == 0, KeepCache: s.random.IntN(2) == 0,
		})
		if err != nil {
			s.t.Fatalf("poisoning %s %v: %v", sharedName(file), r, err)
		}
	}
}

// checkShared wants nothing in the ledger that no poison hit.
func (s *soak) checkShared() {
	s.t.Helper()
	for file, hit := range s.hit {
		for _, row := range s.m.Lost(sharedName(file)) {
			if !hit.Contains(row.Range) {
				s.t.Fatalf("seed %d: %s: the ledger has %v (%s), and no poison hit it", s.seed, sharedName(file), row.Range, row.State)
			}
		}
	}
}

// checkSharedBelow wants the backing of the shared files to be records, or zeros
// that are in the ledger.
func (s *soak) checkSharedBelow(path string) {
	s.t.Helper()
	rows, err := readRows(path)
	if err != nil {
		s.t.Fatal(err)
	}
	for file := range sharedFiles {
		of, all := ranges.Of(), 0
		for _, row := range rows {
			if row.State.Live() && row.Path == sharedName(file) {
				of.Add(row.Range)
				all++
			}
		}
		data, err := os.ReadFile(s.m.Below(sharedName(file)))
		if err != nil || len(data) != sharedSize {
			s.t.Fatalf("%s below: %d bytes, %v", sharedName(file), len(data), err)
		}
		for at := range int64(sharedSize / line) {
			r := ranges.Range{Off: at * line, Len: line}
			generation, ok := generationOf(data[r.Off:r.End()], file, at)
			if !ok || generation == 0 && !of.Contains(r) {
				s.t.Fatalf("seed %d: %s below, %v: record %t, generation %d, and the ledger has %v", s.seed, sharedName(file), r, ok, generation, of)
			}
		}
	}
}

// say prints how far it is.
func (s *soak) say() {
	ops, poisoned := 0, s.shared
	for _, c := range s.children {
		ops += c.last.Ops
		poisoned += c.last.Poisoned
	}
	var engine struct {
		Repairs int64 `json:"repaired_pages"`
	}
	status := s.m.Status()
	if text, err := json.Marshal(status.Engine); err != nil || json.Unmarshal(text, &engine) != nil {
		s.t.Errorf("status: %v", err)
	}
	took := time.Since(s.began)
	line := fmt.Sprintf("%s seed %d: %d of %d operations, %.0f/s, %d times poison, %d pages repaired since the mount, lost %d ranges, reinitialized %d",
		s.profile, s.seed, ops, s.ops, float64(ops)/took.Seconds(), poisoned, engine.Repairs, status.Lost.Ranges, status.Reinitialized.Ranges)
	if s.progress {
		fmt.Println(line)
	} else {
		s.t.Log(line)
	}
}
