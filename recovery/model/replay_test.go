package model

import "slices"

// The steps of replay: a look, and then one of these.
const (
	pLook    uint8 = 0
	stride   uint8 = 16
	pRewrite       = stride * (iota - 1) // the page can't be read
	pWrite                               // it can, and is not what it should be
	pEqual                               // it is
	pNewer                               // and is somebody else's
	pSettle                              // all else
)

// stepsOf is replay.rewrite, restore, cutBack and settled.
func (w *world) stepsOf(pc uint8) []op {
	switch mutated := w.replaySteps != nil; {
	case pc >= pSettle:
		if w.bugs.noSettleSync {
			return []op{opCommit}
		}
		return []op{opSync, opCommit}
	case pc >= pEqual && pc < pNewer && w.bugs.claimRestore:
		return []op{opClaim, opCutBack, opSync, opCommit}
	case pc >= pEqual:
		return []op{opCutBack, opSync, opCommit}
	case mutated:
		return w.replaySteps
	case pc >= pWrite:
		return []op{opClaim, opCopy, opCutBack, opSync, opCommit}
	case w.punches:
		return []op{opClaim, opPunching, opPunch, opCopy, opCutBack, opSync, opCommit}
	}
	return []op{opClaim, opClear, opCopy, opCutBack, opSync, opCommit}
}

// replays is Engine.Replay.
func (w *world) replays(s state, to emit) {
	if int(s.at) == len(s.intents) || !slices.ContainsFunc(s.intents[s.at:], func(in intent) bool { return in.open }) {
		s.phase = serving
		s.replay, s.at = actor{}, 0
		s.clock, s.now.ctime, s.disk.ctime = 0, 0, 0 // no intent is there to be compared
		s.engine.known = s.image.has || s.rows != rows{}
		to("daemon", "serves", s)
		return
	}
	in, r := &s.intents[s.at], &s.replay
	switch {
	case !in.open:
		s.at++
		w.replays(s, to)
		return
	case r.pc == pLook:
		w.look(s, to)
		return
	}
	o := w.stepsOf(r.pc)[r.pc%stride]
	r.pc++
	r.made = o == opClear
	switch {
	case o == opCommit:
		s.settled(in)
		s.at++
	case o == opClaim:
		w.claim(&s, in)
	case o == opCutBack && (!in.sized || r.ended || r.newer && w.bugs.noCutBack):
	default:
		w.medium(&s, o, r.buf)
	}
	to("replay", opNames[o], s)
}

// claim is its namesake.
func (w *world) claim(s *state, in *intent) {
	if in.time == s.clock || w.bugs.noClaim {
		return
	}
	in.punched, in.time = true, s.clock
}

// look is replay.look, and what follows at once.
func (w *world) look(s state, to emit) {
	in, r := &s.intents[s.at], &s.replay
	ours := s.now.ctime <= in.time
	if w.siblings && ours && in.time < s.clock {
		w.sibling(s, to)
	}
	next := func(pc uint8, what string) {
		r.pc = pc
		to("replay", what, s)
	}
	r.buf, r.written, r.have = in.image, in.overwrites, all&^in.missing
	r.ended = s.now.grown && !ours && !w.bugs.equalCutsBack
	same := in.boot == s.boot && !w.bugs.noBoot
	switch {
	case !in.hasImage:
		w.lookWhole(s, ours, to)
	case s.now.hole && in.punched && ours:
		next(pWrite, "looks: our own hole")
	case s.now.hole && in.punched && w.bugs.holeKeeps:
		w.conflict(s, to)
	case s.now.hole:
		s.leave(in)
		next(pSettle, "looks: freed since")
	case s.now.poison != none:
		next(pRewrite, "looks: unreadable")
	case s.now.line == in.image:
		next(pEqual, "looks: equal")
	case same && in.punched && !w.bugs.punchedNewer:
		w.conflict(s, to)
	case same, w.bugs.noTorn:
		w.newer(&s)
		next(pNewer, "looks: newer, kept")
	case ours:
		if w.bugs.renewBoot {
			in.boot = s.boot
		}
		next(pWrite, "looks: torn")
	default:
		w.conflict(s, to)
	}
}

// newer is movesUnderNewer: what is zero of the missing lines is still ours.
func (w *world) newer(s *state) {
	r := &s.replay
	r.newer, r.ended = true, false
	for l, v := range s.now.line {
		if v != zero && !r.have.has(l) {
			r.written |= line(l)
		}
	}
	if w.bugs.noRecord {
		r.written, r.have, s.intents[s.at].lost = 0, all, 0
	}
}

// conflict keeps the image.
func (w *world) conflict(s state, to emit) {
	in := &s.intents[s.at]
	s.kept |= all &^ in.missing
	if w.bugs.conflictRecords {
		w.newer(&s)
		s.replay.pc = pNewer
	} else {
		s.leave(in)
	}
	to("replay", "looks: conflict", s)
}

// leave closes the intent with nothing else.
func (s *state) leave(in *intent) {
	in.lost = 0
	s.replay.pc, s.replay.written, s.replay.have = pSettle, 0, all
}

// sibling is what the replay of another intent of the file does to this one.
func (w *world) sibling(s state, to emit) {
	if w.bugs.claimFile {
		w.claim(&s, &s.intents[s.at])
	}
	s.now.ctime, s.disk.ctime = s.clock, s.clock
	to("replay", "another page of the file is written", s)
}

// lookWhole is withoutImage.
func (w *world) lookWhole(s state, ours bool, to emit) {
	in, r := &s.intents[s.at], &s.replay
	next := func(pc uint8, what string) {
		r.pc = pc
		to("replay", what, s)
	}
	r.have = all
	if s.now.poison != none {
		r.written, in.lost = 0, 0
		next(pSettle, "looks: whole pages, still bad")
		return
	}
	r.written = all
	if w.bugs.noMoves {
		r.written = 0
	}
	if in.boot == s.boot || !ours || s.now.line == in.image || s.now.hole || w.bugs.noRollBack {
		next(pSettle, "looks: whole pages, written")
		return
	}
	r.buf, r.have, r.written = page{zero, zero, zero}, 0, 0
	if s.image.has {
		r.buf, r.have = s.image.line, all&^s.image.missing
	}
	in.lost |= all &^ r.have
	if s.now.line == r.buf { // a crash has interrupted us
		next(pSettle, "looks: whole pages, rolled back before")
		return
	}
	next(pWrite, "looks: whole pages, torn")
}

// settled is its namesake: losses and moves, and the intent closed.
func (s *state) settled(in *intent) {
	for l := range lines {
		if in.lost.has(l) && s.rows[l] == noRow {
			s.rows[l] = rowLost
		}
		live := s.rows[l] == rowLost || s.rows[l] == rowReinitialized
		switch {
		case live && s.replay.written.has(l):
			s.rows[l] = rowOverwritten
		case live && !s.replay.have.has(l):
			s.rows[l] = rowReinitialized
		}
	}
	s.rowsDisk = s.rows
	if in.hasImage {
		s.image = salvaged{}
	}
	*in, s.replay = intent{}, actor{}
}
