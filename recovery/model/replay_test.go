package model

import "slices"

// The steps of replay: a look, those of its rewrite, and the end of an intent.
const (
	pLook uint8 = iota
	pSettleEqual
	pRewrite
)

// rewriteSteps is replay.rewrite, restore and settled.
func (w *world) rewriteSteps() []op {
	switch {
	case w.replaySteps != nil:
		return w.replaySteps
	case w.punches:
		return []op{opPunching, opPunch, opCopy, opCutBack, opSync, opCommit}
	}
	return []op{opClear, opCopy, opCutBack, opSync, opCommit}
}

// replays is Engine.Replay.
func (w *world) replays(s state, to emit) {
	if int(s.at) == len(s.intents) || !slices.ContainsFunc(s.intents[s.at:], func(in intent) bool { return in.open }) {
		s.phase = serving
		s.replay, s.at = actor{}, 0
		s.engine.known = s.image.has || s.rows != rows{}
		to("daemon", "serves", s)
		return
	}
	in := &s.intents[s.at]
	if !in.open {
		s.at++
		w.replays(s, to)
		return
	}
	switch r := &s.replay; {
	case r.pc == pLook:
		w.look(s, to)
	case r.pc == pSettleEqual: // restore, then settled
		if in.sized {
			s.now.grown = false
		}
		s.disk = s.now
		r.pc = pRewrite + uint8(len(w.rewriteSteps())-1)
		to("replay", "equal: size restored, durable", s)
	default:
		o := w.rewriteSteps()[r.pc-pRewrite]
		r.pc++
		r.made = o == opClear
		switch o {
		case opCommit:
			s.settled(in, true)
			s.replay = actor{}
			s.at++
		case opCutBack:
			if in.sized {
				w.medium(&s, o, in.image)
			}
		default:
			w.medium(&s, o, in.image)
		}
		to("replay", opNames[o], s)
	}
}

// look is replay.look, and what follows at once.
func (w *world) look(s state, to emit) {
	in := &s.intents[s.at]
	ours := !s.now.late
	end := func(what string) {
		s.at++
		to("replay", what, s)
	}
	rewrite := func(what string) {
		s.replay.pc = pRewrite
		if w.bugs.renew { // the intent's time, durable before the page is written
			s.minute, s.now.late, s.disk.late = false, false, false
		}
		if w.bugs.renewBoot {
			in.boot = s.boot
		}
		to("replay", what, s)
	}
	switch {
	case !in.hasImage: // withoutImage
		moves := w.bugs.moveWhole && s.now.poison == none
		if moves {
			s.disk = s.now
		}
		s.settled(in, moves)
		end("whole pages: closed")
	case s.now.hole && in.punched && ours:
		rewrite("looks: our own hole")
	case s.now.hole:
		s.settled(in, false)
		end("looks: freed since; closed")
	case s.now.poison != none:
		rewrite("looks: unreadable")
	case s.now.line == in.image:
		s.replay.pc = pSettleEqual
		to("replay", "looks: equal", s)
	case in.boot == s.boot && !w.bugs.noBoot, w.bugs.noTorn:
		w.accountNewer(&s, in)
		s.settled(in, false)
		end("looks: newer, kept; closed")
	case ours:
		rewrite("looks: torn")
	default:
		w.accountNewer(&s, in)
		s.settled(in, false)
		end("looks: conflict; closed")
	}
}

// settled is its namesake: losses and moves, and the intent closed.
func (s *state) settled(in *intent, moves bool) {
	for l := range lines {
		if !moves {
			break
		}
		if in.lost.has(l) && s.rows[l] == noRow {
			s.rows[l] = rowLost
		}
		live := s.rows[l] == rowLost || s.rows[l] == rowReinitialized
		switch {
		case live && in.overwrites.has(l):
			s.rows[l] = rowOverwritten
		case live && in.missing.has(l):
			s.rows[l] = rowReinitialized
		}
	}
	s.rowsDisk = s.rows
	s.image = salvaged{}
	*in = intent{}
}

// accountNewer is a mend: where newer data is kept, what was lost is reinitialized
// if it is zero still, and overwritten if not; and the size is restored.
func (w *world) accountNewer(s *state, in *intent) {
	if !w.bugs.accountNewer {
		return
	}
	s.now.grown = false
	s.disk = s.now
	for l := range lines {
		if in.lost.has(l) || in.missing.has(l) {
			s.rows[l] = rowOverwritten
			if s.now.line[l] == zero {
				s.rows[l] = rowReinitialized
			}
		}
	}
}
