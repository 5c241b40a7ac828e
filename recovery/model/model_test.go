package model

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// floor is fewer states than the exploration of the protocol must visit: below
// it, something is not explored any more.
const floor = 600_000

// needed are steps that some scenario must come to: every way through replay, and
// the rare ones of a read.
var needed = []string{
	"looks: unreadable", "looks: equal", "looks: torn", "looks: our own hole", "looks: newer, kept",
	"looks: conflict", "looks: whole pages, written", "looks: whole pages, still bad", "looks: whole pages, torn",
	"looks: whole pages, rolled back before", "repair: end recorded, the disk later", "write: synced, and recorded", "intent renewed", "repair: intent with an image durable",
	"read: what else can be had", "lists the latent poison", "rows reach the disk", "more than the slack passes",
}

// scenarios are who acts on the page, and how often it may go wrong.
func scenarios() []struct {
	name string
	world
} {
	return []struct {
		name string
		world
	}{
		{"a part is written and read", world{actors: [3]program{readPage, writeFront}, crashes: 2, alien: 1}},
		{"two parts are written", world{actors: [3]program{writeFront, writeEnd}, crashes: 2, alien: 1}},
		{"two parts are written, one reads", world{actors: [3]program{writeFront, writeEnd, readPage}, crashes: 1}},
		{"a part is written, two read", world{actors: [3]program{writeFront, readPage, readPage}}},
		{"the lost line is written", world{actors: [3]program{writeLost, readPage}, crashes: 2, alien: 1, known: true}},
		{"the whole page is written", world{actors: [3]program{writeAll, readPage}, crashes: 2, alien: 1, known: true}},
		{"a part and the whole page are written", world{actors: [3]program{writeAll, writeEnd, readPage}, crashes: 1, known: true}},
		{"the lost line and a part are written", world{actors: [3]program{writeLost, writeEnd, readPage}, crashes: 1, known: true}},
		{"a mapping is written back", world{actors: [3]program{writeEnd, mapStore}, crashes: 2}},
		{"a mapping is written back, one reads", world{actors: [3]program{mapStore, writeEnd, readPage}, crashes: 1}},
		{"after a repair", world{actors: [3]program{writeFront, mapStore, readPage}, crashes: 1, reinit: true}},
	}
}

// media are the shapes that a scenario is played on.
func media(w world) map[string]world {
	out := map[string]world{}
	add := func(name string, p poison, known, punches, tail bool) {
		v := w
		v.poison, v.known, v.punches, v.tail = p, known, punches, tail
		out[name] = v
	}
	if w.reinit {
		add("clean", none, false, false, false)
		return out
	}
	if !w.known {
		add("latent, pwrite clears, tail page", latent, false, false, true)
		add("latent, punch", latent, false, true, false)
		add("listed, pwrite clears", listed, false, false, false)
		add("listed, punch, tail page", listed, false, true, true)
	}
	if w.writesAll() {
		add("known, pwrite clears", listed, true, false, false)
		add("known, punch", listed, true, true, false)
	}
	add("known, pwrite clears, tail page", listed, true, false, true)
	add("known, punch, tail page", listed, true, true, true)
	return out
}

// writesAll reports whether somebody writes the whole page: in the middle of a file
// that has an intent without an image.
func (w *world) writesAll() bool { return slices.Contains(w.actors[:], writeAll) }

// TestProtocolHolds explores the protocol as it is: no invariant is broken in
// any state that can be reached.
func TestProtocolHolds(t *testing.T) {
	states, steps := 0, map[string]bool{}
	for _, sc := range scenarios() {
		for name, w := range media(sc.world) {
			t.Run(sc.name+"/"+name, func(t *testing.T) {
				r := explore(&w)
				states += r.states
				maps.Copy(steps, r.steps)
				t.Logf("%d states", r.states)
				if r.broken != "" {
					t.Error(r)
				}
			})
		}
	}
	t.Logf("%d states in all", states)
	for _, what := range needed {
		if !steps[what] {
			t.Errorf("nowhere: %s", what)
		}
	}
	if states < floor {
		t.Errorf("%d states, fewer than %d: what is not explored any more?", states, floor)
	}
}

// TestEveryStepIsNeeded takes one thing at a time out of the protocol, or moves
// it. Each time an invariant must break, and must not without the change.
func TestEveryStepIsNeeded(t *testing.T) {
	one := world{actors: [3]program{writeFront}, poison: listed, crashes: 1}
	tail, punch := one, one
	tail.tail, punch.punches = true, true
	seen := one
	seen.known = true
	two := world{actors: [3]program{writeFront, writeEnd}, poison: listed, known: true}
	again, alien := one, one
	again.crashes, alien.alien = 2, 1
	tailAlien := alien
	tailAlien.tail = true
	whole := world{actors: [3]program{writeAll, readPage}, poison: listed, known: true, crashes: 2}
	tests := []struct {
		name   string
		world  world
		change func(w *world)
		broken string // prefix of the invariant's name
	}{
		{"the page is written before the intent is durable", one, func(w *world) {
			w.steps = []op{opClear, opCopy, opIntent, opCutBack, opSync, opCommit, opUnlock}
		}, "I1"},
		{"the intent is closed before the page is durable", seen, func(w *world) {
			w.steps = []op{opIntent, opClear, opCopy, opCutBack, opClose, opSync, opMoveRows, opUnlock}
		}, "I1"},
		{"the rows are moved before the page is durable", one, func(w *world) {
			w.steps = []op{opIntent, opClear, opCopy, opCutBack, opMoveRows, opSync, opClose, opUnlock}
		}, "I3"},
		{"the intent is closed, then the rows are moved", one, func(w *world) {
			w.steps = []op{opIntent, opClear, opCopy, opCutBack, opSync, opClose, opMoveRows, opUnlock}
		}, "I3"},
		{"the lock is released before the intent is closed", two, func(w *world) {
			w.steps = []op{opIntent, opClear, opCopy, opCutBack, opSync, opUnlock, opCommit}
		}, "I1"},
		{"the file is cut back after the intent is closed", tail, func(w *world) {
			w.steps = []op{opIntent, opClear, opCopy, opSync, opCommit, opCutBack, opUnlock}
		}, "I6"},
		{"the intent does not know the size", tail, func(w *world) { w.bugs.noSize = true }, "I6"},
		{"the page is punched before the journal knows", punch, func(w *world) {
			w.steps = []op{opIntent, opPunch, opCopy, opCutBack, opSync, opCommit, opUnlock}
		}, "I2"},
		{"a reader does not look at the epoch again", world{actors: [3]program{readPage, writeFront}, poison: listed, punches: true},
			func(w *world) { w.bugs.noEpoch = true }, "I1"},
		{"a reader gives up what a writer may have changed", world{actors: [3]program{readPage, writeFront}, poison: latent},
			func(w *world) { w.bugs.noWrites = true }, "I1"},
		{"the page is salvaged with the lock held shared", two, func(w *world) { w.bugs.sharedSalvage = true }, "I1"},
		{"replay does not look at the boot", alien, func(w *world) { w.bugs.noBoot = true }, "I3"},
		{"replay takes a torn page for newer data", one, func(w *world) { w.bugs.noTorn = true }, "I1"},
		{"replay does not wait for the page to be durable", again, func(w *world) {
			w.replaySteps = []op{opClaim, opClear, opCopy, opCutBack, opCommit}
		}, "I3"},
		{"replay gives the intent of a torn page a new boot", again, func(w *world) { w.bugs.renewBoot = true }, "I1"},
		{"replay writes under the intent's old time", again, func(w *world) { w.bugs.noClaim = true }, "I1"},
		{"replay does not record the loss under newer data", alien, func(w *world) { w.bugs.noRecord = true }, "I3"},
		{"replay leaves the size under newer data", tailAlien, func(w *world) { w.bugs.noCutBack = true }, "I6"},
		{"replay leaves torn whole pages", whole, func(w *world) { w.bugs.noRollBack = true }, "I1"},
		{"replay leaves the rows of whole pages", whole, func(w *world) { w.bugs.noMoves = true }, "I3"},
		{"replay closes the intent of whole pages before they are durable", whole, func(w *world) { w.bugs.noSettleSync = true }, "I3"},
		{"a page is written again before its intent is closed",
			world{actors: [3]program{writeAll, writeEnd}, poison: listed, known: true, crashes: 1}, func(w *world) { w.bugs.noEndClosing = true }, "I"},
		{"whole pages: the end is recorded before they are durable", whole, func(w *world) {
			w.steps = []op{opIntent, opClear, opCopy, opCutBack, opRecord, opSync, opUnlock}
		}, "I3"},
		{"replay takes a part written into our hole for newer data",
			world{actors: one.actors, poison: listed, punches: true, crashes: 1, alien: 1, conflicts: true, bugs: bugs{conflictRecords: true}},
			func(w *world) { w.bugs.punchedNewer = true }, "I2"},
		{"zeros are recorded as overwritten before the data is durable",
			world{actors: [3]program{writeLost}, reinit: true, crashes: 1}, func(w *world) { w.bugs.recordFirst = true }, "I3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.world
			if r := explore(&w); r.broken != "" {
				t.Fatalf("without the change: %v", r)
			}
			tt.change(&w)
			r := explore(&w)
			if !strings.HasPrefix(r.broken, tt.broken) {
				t.Fatalf("%d states, and no counterexample to %s: %v", r.states, tt.broken, r)
			}
			t.Logf("after %d states: %v", r.states, r)
		})
	}
}

// TestGaps is what the protocol is known not to survive (docs/protocol.md,
// Gaps): what the environment is otherwise held not to do breaks it. A mend, if
// there is one, closes the gap.
func TestGaps(t *testing.T) {
	one := world{actors: [3]program{writeFront}, poison: listed, crashes: 2}
	tail, alien := one, one
	tail.tail, alien.alien = true, 1
	punch, tailAlien := alien, alien
	punch.punches, tailAlien.tail = true, true
	punchTail := punch
	punchTail.tail, punchTail.known = true, true
	tests := []struct {
		name   string
		world  world
		allow  func(w *world)
		broken string
		mend   func(w *world) // nil: there is none
	}{
		{"another program writes a part of our hole", punch, func(w *world) { w.conflicts = true }, "I3",
			func(w *world) { w.bugs.conflictRecords = true }},
		{"another program writes a part of a page that was punched: the size stays", punchTail, func(w *world) { w.conflicts = true }, "I6",
			func(w *world) { w.bugs.conflictRecords = true }},
		{"another program writes a part, and then the power goes", alien, func(w *world) { w.conflicts = true }, "I3",
			func(w *world) { w.bugs.conflictRecords = true }},
		{"another program writes at once, and the power goes", alien, func(w *world) { w.hasty = true }, "I4, I5", nil},
		{"the power takes back a part of what another program wrote", alien, func(w *world) { w.unsynced = true }, "I3",
			func(w *world) { w.bugs.conflictRecords = true }},
		{"another program touches the file: the size stays", tailAlien, func(w *world) { w.touches = true }, "I6",
			func(w *world) { w.bugs.equalCutsBack = true }},
		{"another program touches the file: our hole is not ours any more", punch, func(w *world) { w.touches = true }, "I2",
			func(w *world) { w.bugs.holeKeeps, w.bugs.conflictRecords = true, true }},
		{"another program touches the file: a torn page is a conflict", alien, func(w *world) { w.touches, w.conflicts = true, true }, "I1", nil},
		{"a late replay writes another page of the file", one, func(w *world) { w.siblings = true }, "I1",
			func(w *world) { w.bugs.claimFile = true }},
		{"the power goes behind the cut of a page that a late replay found equal", tail, func(w *world) { w.slow = true }, "I1",
			func(w *world) { w.bugs.claimRestore = true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.world
			if r := explore(&w); r.broken != "" {
				t.Fatalf("without the gap: %v", r)
			}
			tt.allow(&w)
			r := explore(&w)
			if !strings.HasPrefix(r.broken, tt.broken) {
				t.Fatalf("%d states, and no counterexample to %s: %v", r.states, tt.broken, r)
			}
			t.Logf("after %d states: %v", r.states, r)
			if tt.mend == nil {
				return
			}
			tt.mend(&w)
			if r := explore(&w); r.broken != "" {
				t.Errorf("mended: %v", r)
			}
		})
	}
}
