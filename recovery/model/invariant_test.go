package model

// broken is the invariant that does not hold in s; empty if all do.
func (w *world) broken(s *state) string {
	for i := range s.actors {
		if s.actors[i].wrong {
			return "I1: a read returned what was never there, what was replaced before it began, or bytes behind the file's end"
		}
	}
	switch {
	case s.phase == down:
		return w.brokenOffline(s)
	case s.phase != serving || s.engine.exclusive != 0:
		return ""
	}
	if why := w.brokenOnline(*s); why != "" {
		return why
	}
	if s.restarted && !s.engine.closing && (s.intents[0].open || s.intents[1].open) {
		return "I6: an intent is open after replay"
	}
	return ""
}

// brokenOffline: what the durable ledger calls clean is clean.
func (w *world) brokenOffline(s *state) string {
	for l, r := range s.rowsDisk {
		if r != rowReinitialized && r != rowOverwritten {
			continue
		}
		if s.now.poison != none && s.now.line[l] == lost || s.now.line[l] == garbage {
			return "I3: a durable row says clean, and the medium is not"
		}
	}
	return ""
}

// brokenOnline is a read that nothing interrupts, now. s is a copy.
func (w *world) brokenOnline(s state) string {
	if s.now.grown {
		return "I6: the intermediate size of the tail page is seen"
	}
	read, missing := s.salvaged()
	if s.engine.bad || s.now.poison != none {
		for l := range lines {
			if missing.has(l) {
				s.rows[l] = rowLost // before the reply
			}
		}
	} else {
		s.noticeClean(read)
	}
	for l, v := range read {
		switch can := s.ghost.can[l] &^ s.ghost.dead[l]; {
		case can.has(v):
		case v == zero && s.kept.has(l):
			continue // lost --pending has it
		case v == zero:
			return "I2: zeros for bytes that could be salvaged, or that were written"
		case v == garbage:
			return "I1: a read gets what a cleared page holds"
		case s.restarted:
			return "I4, I5: after recovery there is older data than what was answered (and synced, if the power went)"
		default:
			return "I1: a read gets data older than what was answered"
		}
		// The row of a write that was not answered, or not synced, may be behind: the daemon died.
		recorded := s.rows[l] == rowLost || s.rows[l] == rowReinitialized
		switch {
		case v == zero && !recorded:
			return "I3: zeros for lost bytes, and no record of them"
		case v != zero && v != foreign && recorded && !s.noting(l) && (!s.restarted || s.ghost.noZero.has(l)):
			return "I3: bytes of the application are recorded as lost"
		case v != zero && v != foreign && s.rows[l] == rowHealed:
			return "I3: new bytes are recorded as healed"
		}
	}
	return ""
}

// noting reports whether the line is written and its record is not: no such write
// was answered.
func (s *state) noting(l int) bool {
	for _, a := range s.actors {
		if (a.pc == wNote || a.pc == mServe+wNote) && a.have.has(l) {
			return true
		}
	}
	return false
}
