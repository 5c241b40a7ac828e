package model

import "slices"

// kind is a program.
type kind uint8

const (
	nobody kind = iota
	reader
	writer
	mapper // maps the page, stores, and the kernel writes it back
)

// program is one actor's.
type program struct {
	kind  kind
	value value
	lines mask
}

var (
	readPage   = program{kind: reader}
	writeFront = program{writer, first, line(0)}
	writeEnd   = program{writer, second, line(2)}
	writeLost  = program{writer, first, line(badLine)}
	writeAll   = program{writer, first, all}
	mapStore   = program{mapper, mapped, line(0)}
)

// world is a scenario: who acts, on what, and what may happen to them.
type world struct {
	actors  [3]program
	poison  poison // at the start
	reinit  bool   // or: the page was repaired before
	known   bool   // the page was read before: an image and a row exist
	tail    bool   // the page is the file's last, and not full
	punches bool   // the rung for kernels before 5.19
	crashes uint8
	alien   uint8 // writes of other programs while the daemon is down

	// What the environment is held not to do; see docs/protocol.md, Gaps.
	hasty     bool // another program writes within the slack, and then the power goes
	unsynced  bool // it does not sync, and then the power goes
	conflicts bool // it writes a part of a page that was punched or replayed late, or the power goes behind that
	touches   bool // it changes another page of the file, or its attributes, after the slack
	siblings  bool // replay itself writes another page of the file, after the slack
	slow      bool // the power goes when a replay after the slack has cut back a page that it found equal

	steps, replaySteps []op // of a repair and of replay's; nil: the protocol's own
	bugs               bugs
}

// bugs are the mutations that are no reordering of a repair's steps, and the
// mends of the gaps.
type bugs struct {
	noEpoch, noWrites, noBoot, noTorn, noSize, sharedSalvage, renewBoot bool

	noEndClosing bool // a page is written again before its intent is closed
	noClaim      bool // replay writes under the intent's old time
	noRecord     bool // what lies under newer data is not recorded
	noCutBack    bool // the size under newer data stays
	recordFirst  bool // zeros are recorded as overwritten before the data is durable
	noRollBack   bool // torn whole pages stay
	noMoves      bool // the rows of whole pages that read well stay
	noSettleSync bool // replay closes an intent over data that is not durable
	punchedNewer bool // a punched page that differs is newer data as any other

	conflictRecords bool // mend: a conflict records and cuts back as newer data does
	claimRestore    bool // mend: the intent of a page that is equal is renewed before the file is cut back
	equalCutsBack   bool // mend: the file is cut back behind an equal page whoever touched it since
	holeKeeps       bool // mend: a hole that may be ours is a conflict
	claimFile       bool // mend: all intents of the file that are ours are renewed
}

// maps reports whether the page is mapped, and so in the kernel's cache.
func (w *world) maps() bool {
	return slices.ContainsFunc(w.actors[:], func(p program) bool { return p.kind == mapper })
}

func (w *world) initial() state {
	s := state{crashes: w.crashes, alien: w.alien, boot: 1}
	s.now = medium{line: page{old, lost, old}, poison: w.poison}
	s.ghost.can = [lines]values{old.set(), zero.set(), old.set()}
	if w.reinit {
		s.now = medium{line: page{old, zero, old}}
		s.rows[badLine] = rowReinitialized
		s.engine.known = true
	}
	if w.known {
		s.rows[badLine] = rowLost
		s.image = salvaged{true, page{old, zero, old}, line(badLine)}
		s.engine.known, s.engine.bad = true, true
	}
	s.disk, s.rowsDisk = s.now, s.rows
	return s
}

// successors are all that may happen next, one atomic step each.
func (w *world) successors(s state, to emit) {
	switch s.phase {
	case serving:
		for i, p := range w.actors {
			if s.actors[i].pc == done {
				continue
			}
			switch p.kind {
			case reader:
				w.serveRead(s, i, to)
			case writer:
				w.write(s, i, to)
			case mapper:
				w.mapping(s, i, to)
			}
		}
	case down:
		w.others(s, to)
		n := s
		n.phase, n.replay, n.at = replaying, actor{}, 0
		n.engine = engine{}
		to("daemon", "starts", n)
	case replaying:
		w.replays(s, to)
	}
	w.nature(s, to)
}

// finished reports whether all programs are done, or dead.
func (w *world) finished(s *state) bool {
	for i, p := range w.actors {
		if p.kind != nobody && s.actors[i].pc != done {
			return false
		}
	}
	return s.phase == serving
}

// done is the pc of a program at its end, or killed.
const done = 255

var names = [3]string{"actor 1", "actor 2", "actor 3"}

// nature is what happens by itself.
func (w *world) nature(s state, to emit) {
	if s.now.poison == latent {
		n := s
		n.now.poison = listed
		if !s.now.moved && !s.disk.moved {
			n.disk.poison = listed
		}
		to("kernel", "lists the latent poison", n)
	}
	if (s.rowsDisk != s.rows || s.engine.closing) && s.phase == serving {
		n := s
		n.flush()
		to("ledger", "rows reach the disk", n)
	}
	if s.now != s.disk && !s.midWrite() {
		n := s
		n.disk = s.now
		to("kernel", "writes everything back", n)
	}
	if s.phase == down && s.fresh() {
		n := s
		n.clock++
		to("clock", "more than the slack passes", n)
	}
	if s.crashes == 0 || s.phase == down && s.now == s.disk {
		return
	}
	if s.phase != down && !s.midWrite() {
		n := s
		n.kill()
		to("kill -9", "the daemon dies; the kernel goes on", n)
	}
	if w.mayCut(&s) {
		w.powerCut(s, to)
	}
}

// midWrite reports whether a write of the medium has cleared the page and not
// copied yet: a signal waits until it has.
func (s *state) midWrite() bool {
	return s.now.torn() && (s.engine.exclusive != 0 || s.phase == replaying && s.replay.made)
}

// mayCut leaves out the power cuts that the protocol is known not to survive.
func (w *world) mayCut(s *state) bool {
	switch r := &s.replay; {
	case s.hasty && !w.hasty, s.mixed && !w.conflicts:
		return false
	case s.phase == replaying && r.pc >= pEqual && r.pc < pEqual+stride && s.now != s.disk && s.now.ctime == s.clock:
		return s.fresh() || w.slow
	}
	return true
}

// fresh reports whether an open intent is not older than the slack.
func (s *state) fresh() bool {
	return slices.ContainsFunc(s.intents[:], func(in intent) bool { return in.open && in.time == s.clock })
}

// kill ends the daemon and every program that had it serve a request.
func (s *state) kill() {
	s.crashes--
	s.phase, s.restarted = down, true
	s.rows = s.rowsDisk
	s.engine, s.cache, s.replay = engine{}, cache{}, actor{}
	for i := range s.actors {
		s.actors[i] = actor{pc: done, kills: s.actors[i].kills}
	}
}

// powerCut leaves of all that was not synced any part.
func (w *world) powerCut(s state, to emit) {
	s.kill()
	s.boot++
	s.ghost.dead = s.ghost.synced
	blocks, differs := s.now.hole != s.disk.hole || s.now.moved != s.disk.moved, s.unsynced()
	for m := range mask(1 << (lines + 3)) {
		if m&^differs != 0 {
			continue
		}
		n := s
		now := s.now
		if blocks {
			if m.has(lines) {
				now = s.disk
			} else if !now.hole {
				for i := range now.line {
					if m.has(i) {
						now.line[i] = zero // the new block, before the copy
					}
				}
			}
		} else {
			for i := range now.line {
				if m.has(i) {
					now.line[i] = s.disk.line[i]
				}
			}
		}
		if m.has(lines + 1) {
			now.grown = s.disk.grown
		}
		if m.has(lines + 2) {
			now.ctime = s.disk.ctime
		}
		n.now, n.disk = now, now
		to("power", "cut", n)
	}
}

// unsynced is what a power cut may take back: a bit for each line, and for the
// block, the size and ctime.
func (s *state) unsynced() (m mask) {
	blocks := s.now.hole != s.disk.hole || s.now.moved != s.disk.moved
	for i := range lines {
		if blocks && !s.now.hole || !blocks && s.now.line[i] != s.disk.line[i] {
			m |= line(i)
		}
	}
	for i, differs := range []bool{blocks, s.now.grown != s.disk.grown, s.now.ctime != s.disk.ctime} {
		if differs {
			m |= line(lines + i)
		}
	}
	return m
}

// others is what programs do to the backing while no daemon runs.
func (w *world) others(s state, to emit) {
	if s.alien == 0 || s.fresh() && !w.hasty && !s.sameBoot() {
		return
	}
	s.alien--
	s.hasty = s.hasty || s.fresh()
	if w.touches && !s.fresh() && (w.conflicts || s.sameBoot()) {
		n := s
		n.mixed = true
		n.now.ctime, n.disk.ctime = s.clock, s.clock
		to("other", "touches the file elsewhere", n)
	}
	if s.now.poison == none && !s.now.torn() && (w.conflicts || s.sameBoot() && !s.punched()) {
		n := s
		if n.now.hole { // the rest of a new block is zero
			n.now.hole, n.now.moved = false, true
		}
		n.mixed = true
		w.otherWrote(n, line(2), "writes the last line", to)
	}
	if s.now.poison == latent {
		return // its write would not see the poison
	}
	if s.now.poison == listed { // what a power cut in the middle of it leaves is not ours
		s.disk.poison, s.disk.line = none, page{foreign, foreign, foreign}
	}
	s.now.moved = s.now.moved || s.now.hole
	s.now.hole, s.now.poison = false, none
	s.now.grown = false // where the file ends now is its own doing
	w.otherWrote(s, all, "writes the whole page", to)
}

// otherWrote is another program's write, synced or not. One that a power cut takes
// back in part is as one of a part.
func (w *world) otherWrote(s state, m mask, what string, to emit) {
	s.now.ctime = s.clock
	for i := range lines {
		if m.has(i) {
			s.now.line[i] = foreign
			s.ghost.dead[i] |= s.ghost.can[i] &^ foreign.set()
			s.ghost.can[i] |= foreign.set()
		}
	}
	unsynced := s
	unsynced.hasty = unsynced.hasty || !w.unsynced
	if !w.hasty && (!s.disk.torn() || unsynced.hasty) {
		to("other", what, unsynced)
	}
	s.disk, s.ghost.synced = s.now, s.ghost.dead
	to("other", what+", fsync", s)
}

// punched reports whether an open intent says that its page was punched, or was
// renewed, which is the same record.
func (s *state) punched() bool {
	return slices.ContainsFunc(s.intents[:], func(in intent) bool { return in.open && in.punched })
}

// torn reports whether some of the page was cleared and not written. A write of
// a part of such a page is a conflict for people.
func (m *medium) torn() bool { return slices.Contains(m.line[:], garbage) }

func (s *state) sameBoot() bool {
	for _, in := range s.intents {
		if in.open && in.boot != s.boot {
			return false
		}
	}
	return true
}
