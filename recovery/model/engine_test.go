package model

// What the steps of readers, writers and replay are made of.

// store is a pwrite that meets no known poison. A latent line takes nothing.
func (s *state) store(p page, m mask) {
	for l := range lines {
		if m.has(l) && s.now.line[l] != lost {
			s.now.line[l] = p[l]
		}
	}
	s.now.hole = false
	s.now.ctime = s.clock
}

// overwrites is its namesake: the lines whose zeros are replaced.
func (s *state) overwrites(p page, m mask, writeback bool) (gone mask) {
	for l := range lines {
		live := s.rows[l] == rowLost || s.rows[l] == rowReinitialized
		if m.has(l) && live && !(writeback && p[l] == zero) && s.now.line[l] != lost {
			gone |= line(l)
		}
	}
	return gone
}

// recordGone is its namesake.
func (w *world) recordGone(s *state, gone mask) {
	if !w.bugs.recordFirst {
		s.disk = s.now
	}
	for l := range lines {
		if gone.has(l) {
			s.rows[l] = rowOverwritten
		}
	}
}

// concerns is damage.concernsRead and concernsWrite.
func (s *state) concerns() bool {
	e := &s.engine
	return e.known && (e.bad || s.image.has || s.rows[0] == rowLost || s.rows[1] == rowLost || s.rows[2] == rowLost)
}

// medium is the steps that the medium sees: of a repair, and of replay.
func (w *world) medium(s *state, o op, content page) {
	switch o {
	case opPunching:
		for k := range s.intents {
			if in := &s.intents[k]; in.open && in.hasImage {
				in.punched, in.time = true, s.clock
			}
		}
	case opPunch:
		s.now.line, s.now.poison, s.now.hole, s.now.moved = page{zero, zero, zero}, none, true, false
		s.now.ctime = s.clock
	case opClear:
		s.now.ctime = s.clock
		s.now.line, s.now.poison = page{garbage, garbage, garbage}, none
		s.disk.line, s.disk.poison = s.now.line, none
	case opCopy:
		if s.now.hole {
			s.now.hole, s.now.moved = false, true
		}
		s.now.line, s.now.poison = content, none
		s.now.grown = s.now.grown || w.tail
		s.now.ctime = s.clock
	case opCutBack:
		if s.now.grown {
			s.now.grown, s.now.ctime = false, s.clock
		}
	case opSync:
		s.disk = s.now
	}
}

// moveRows is repair.change.
func (s *state) moveRows(written, missing mask) {
	for l := range lines {
		switch live := s.rows[l] == rowLost || s.rows[l] == rowReinitialized; {
		case live && written.has(l):
			s.rows[l] = rowOverwritten
		case s.rows[l] == rowLost:
			s.rows[l] = rowReinitialized
		case missing.has(l) && s.rows[l] == noRow:
			s.rows[l] = rowReinitialized
		}
	}
}

func (s *state) closeIntents() {
	s.intents = [2]intent{}
	s.image = salvaged{}
	s.engine.bad, s.engine.closing = false, false
}

// flush is Ledger.Flush: rows, and the intents that wait to be closed, in one.
func (s *state) flush() {
	s.rowsDisk = s.rows
	if s.engine.closing {
		s.intents, s.engine.closing = [2]intent{}, false
	}
}

func (s *state) lostLines() (m mask) {
	for l, r := range s.rows {
		if r == rowLost {
			m |= line(l)
		}
	}
	return m
}

// salvaged is what can be had of the page now: serveKnown, or salvage.
func (s *state) salvaged() (p page, missing mask) {
	if s.engine.bad {
		if s.image.has {
			return s.image.line, s.image.missing
		}
		return page{zero, zero, zero}, all
	}
	p = s.now.line
	for l, v := range p {
		if v == lost {
			p[l] = zero
			missing |= line(l)
		}
	}
	return p, missing
}

// inspect is File.inspect: try and settle, with the inode locked. An unlisted
// page is touched, and listed by that.
func (s *state) inspect() {
	if s.engine.bad {
		return
	}
	if s.now.poison == none {
		s.image = salvaged{} // dropOutdated
		s.noticeClean(s.now.line)
		return
	}
	s.learn(s.salvaged())
}

// learn is recordLoss.
func (s *state) learn(p page, missing mask) {
	if s.now.poison == latent {
		s.now.poison = listed
		if !s.now.moved && !s.disk.moved {
			s.disk.poison = listed
		}
	}
	for l := range lines {
		if missing.has(l) && s.rows[l] != rowLost {
			s.rows[l] = rowLost
		}
	}
	s.image = salvaged{true, p, missing}
	s.engine.bad = true
}

// noticeClean is its namesake.
func (s *state) noticeClean(read page) {
	for l, v := range read {
		if s.rows[l] != rowLost {
			continue
		}
		s.rows[l] = rowHealed
		if v == zero {
			s.rows[l] = rowReinitialized
		}
	}
}
