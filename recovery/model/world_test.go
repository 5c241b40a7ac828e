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
	partAlien bool // another program writes a part of the page
	hasty     bool // it writes within the slack, and then the power goes
	unsynced  bool // it does not sync, and then the power goes
	slow      bool // the power goes in a replay that began after the slack
	wholeKill bool // the daemon dies between a whole-page write's first change of the page and its end
	wholeTorn bool // the power goes between clear and copy of a whole-page write
	eager     bool // the ledger's rows reach the disk before unsynced data

	steps, replaySteps []op // of a repair and of replay's; nil: the protocol's own
	bugs               bugs
}

// bugs are the mutations that are no reordering of a repair's steps, and the
// mends of the gaps.
type bugs struct {
	noEpoch, noWrites, noBoot, noTorn, noSize, sharedSalvage, renewBoot bool

	renew        bool // mend: replay gives the intent a new time before it writes
	accountNewer bool // mend: rows are settled where newer data is kept
	syncFirst    bool // mend: data is synced before a row becomes overwritten
	wholeImage   bool // mend: an intent with an image for whole pages, too
	moveWhole    bool // mend: replay moves the rows of whole pages that read well
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
	if s.rowsDisk != s.rows && s.phase == serving && (w.eager || s.now == s.disk) {
		n := s
		n.rowsDisk = s.rows
		to("ledger", "rows reach the disk", n)
	}
	if s.now != s.disk && !s.midWrite() {
		n := s
		n.disk = s.now
		to("kernel", "writes everything back", n)
	}
	if s.phase == down && !s.minute {
		n := s
		n.minute = true
		to("clock", "more than the slack passes", n)
	}
	if s.crashes == 0 || s.phase == down && s.now == s.disk {
		return
	}
	if s.phase != down && !s.midWrite() && (w.wholeKill || !s.plainIntent()) {
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
	if s.hasty && !w.hasty {
		return false
	}
	if s.phase == replaying && s.minute && s.now != s.disk && !w.slow {
		return false
	}
	if s.phase == replaying && s.minute && s.midWrite() && !w.slow {
		return false
	}
	return w.wholeTorn || !s.plainIntent() || w.wholeKill && s.now == s.disk && !s.midWrite()
}

// plainIntent reports whether a whole-page write has changed the page, and its
// intent, which has no image, is open.
func (s *state) plainIntent() bool {
	return s.now.poison == none && slices.ContainsFunc(s.intents[:], func(in intent) bool { return in.open && !in.hasImage })
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
	for m := range mask(1 << (lines + 3)) {
		n := s
		now := s.now
		if now.hole != s.disk.hole || now.moved != s.disk.moved {
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
			now.late = s.disk.late
		}
		n.now, n.disk = now, now
		to("power", "cut", n)
	}
}

// others is what programs do to the backing while no daemon runs.
func (w *world) others(s state, to emit) {
	if s.alien == 0 || !s.minute && !w.hasty && !s.sameBoot() {
		return
	}
	s.alien--
	s.hasty = s.hasty || !s.minute
	// A write that a power cut takes back in part is as one of a part.
	wrote := func(m mask, what string) {
		n := s
		n.now.late = s.minute
		for i := range lines {
			if m.has(i) {
				n.now.line[i] = foreign
				n.ghost.dead[i] |= n.ghost.can[i] &^ foreign.set()
				n.ghost.can[i] |= foreign.set()
			}
		}
		unsynced := n
		unsynced.hasty = unsynced.hasty || !w.partAlien && !w.unsynced
		if !w.hasty && !s.disk.torn() || unsynced.hasty && !w.hasty {
			to("other", what, unsynced)
		}
		n.disk, n.ghost.synced = n.now, n.ghost.dead
		to("other", what+", fsync", n)
	}
	if s.now.poison == none && w.partAlien && !s.now.torn() {
		if s.now.hole { // the rest of a new block is zero
			s.now.hole, s.now.moved, s.now.poison = false, true, none
		}
		wrote(line(2), "writes the last line")
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
	wrote(all, "writes the whole page")
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
