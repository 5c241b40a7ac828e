package model

// The steps of a read.
const (
	rBegin uint8 = iota
	rEpoch
	rDamage
	rPread
	rEpochAgain
	rLockShared
	rPreadShared
	rBehind
	rUnlockShared
	rLock
	rSettle
	rUnlock
	rReturn
)

// serveRead is File.Read. It ends at rReturn, with the page in a.buf.
func (w *world) serveRead(s state, i int, to emit) {
	switch a := &s.actors[i]; {
	case a.pc <= rEpochAgain:
		w.readLockless(s, i, to)
	case a.pc <= rUnlockShared:
		w.readShared(s, i, to)
	case a.pc <= rUnlock:
		w.readExclusive(s, i, to)
	default:
		w.returns(&s, i)
		*a = actor{pc: done, wrong: a.wrong}
		to(names[i], "read: answered", s)
	}
}

// readLockless is an attempt with nothing locked.
func (w *world) readLockless(s state, i int, to emit) {
	a, me, e := &s.actors[i], names[i], &s.engine
	switch a.pc {
	case rBegin:
		a.dead, a.writes = s.ghost.dead, e.writes
		a.pc = rEpoch
		to(me, "read: asked for; writes looked at", s)
	case rEpoch:
		a.epoch, a.pc = e.epoch, rDamage
		if e.epoch%2 != 0 {
			a.pc = rLockShared
		}
		to(me, "read: epoch looked at", s)
	case rDamage:
		a.pc = rPread
		if e.known {
			a.pc = rLockShared
		}
		to(me, "read: damage looked at", s)
	case rPread:
		s.pread(i)
		a.pc = rEpochAgain
		to(me, "pread, nothing locked: "+a.buf.String(), s)
	case rEpochAgain:
		a.pc = rReturn
		if a.have != all || e.epoch != a.epoch && !w.bugs.noEpoch {
			a.made, a.pc = true, rLockShared
		}
		to(me, "read: epoch looked at again", s)
	}
}

// readShared is its namesake.
func (w *world) readShared(s state, i int, to emit) {
	a, me, e := &s.actors[i], names[i], &s.engine
	switch a.pc {
	case rLockShared:
		if e.exclusive != 0 {
			return
		}
		e.shared |= line(i)
		stands := a.made && a.writes == e.writes
		a.writes = e.writes
		switch {
		case stands:
			a.pc = rUnlockShared
			if a.have != all {
				a.pc = rBehind
			}
		case s.concerns() && e.bad:
			a.buf, _ = s.salvaged()
			a.have, a.pc = all, rUnlockShared
		default:
			a.have, a.pc = 0, rPreadShared
		}
		to(me, "read: locked shared", s)
	case rPreadShared:
		s.pread(i)
		a.pc = rUnlockShared
		if a.have != all {
			a.pc = rBehind
		}
		to(me, "pread, locked shared: "+a.buf.String(), s)
	case rBehind: // try: what lies behind the line at which a read stopped short
		if e.bad { // another reader has learnt of it
			a.buf, _ = s.salvaged()
			a.have = all
		} else if s.now.poison == latent && a.have != 0 {
			a.buf[2] = s.now.line[2]
			a.have |= line(2)
		}
		e.known = true
		a.pc = rUnlockShared
		to(me, "read: what else can be had", s)
	case rUnlockShared:
		e.shared &^= line(i)
		a.pc = rReturn
		if a.have != all || s.isNews() {
			a.pc = rLock
		}
		to(me, "read: unlocked", s)
	}
}

// readExclusive is the rest of File.read: what nobody knew is learnt.
func (w *world) readExclusive(s state, i int, to emit) {
	a, me, e := &s.actors[i], names[i], &s.engine
	switch a.pc {
	case rLock:
		if e.exclusive != 0 || e.shared != 0 {
			return
		}
		e.exclusive = int8(i + 1)
		e.epoch++
		if e.writes != a.writes && !w.bugs.noWrites {
			a.have = 0 // once more, all of it
		}
		a.pc = rSettle
		to(me, "read: locked exclusively", s)
	case rSettle:
		s.settle(i)
		a.pc = rUnlock
		to(me, "read: settled "+a.buf.String(), s)
	case rUnlock:
		e.epoch++
		e.exclusive = 0
		a.pc = rReturn
		to(me, "read: unlocked", s)
	}
}

// pread is one of the whole page: all, what lies in front of a latent line, or
// nothing.
func (s *state) pread(i int) {
	a := &s.actors[i]
	a.ended = s.now.grown
	switch s.now.poison {
	case none:
		a.buf, a.have = s.now.line, all
	case latent:
		a.buf, a.have = page{s.now.line[0]}, line(0)
	case listed:
		a.buf, a.have = page{}, 0
	}
}

// isNews is damage.isNews for a read of a page that is not bad.
func (s *state) isNews() bool {
	return s.engine.known && !s.engine.bad && (s.image.has || s.lostLines() != 0)
}

// settle is its namesake: what a.have lacks is salvaged or given up.
func (s *state) settle(i int) {
	a := &s.actors[i]
	s.engine.known = true
	if s.engine.bad && a.have != all {
		a.buf, _ = s.salvaged() // tryWithin serves it from what is known
		a.have = all
		return
	}
	if a.have == all { // it reads well
		if s.now.poison == none {
			s.image = salvaged{}
			s.noticeClean(a.buf)
		}
		return
	}
	missing := all &^ a.have
	for l := range lines {
		if v := s.now.line[l]; missing.has(l) && v != lost {
			a.buf[l] = v
			missing &^= line(l)
		} else if missing.has(l) {
			a.buf[l] = zero
		}
	}
	a.have = all
	if s.now.poison == none {
		s.image = salvaged{}
		s.noticeClean(a.buf)
		return
	}
	s.learn(a.buf, missing)
}

// returns checks what a reader is given, and notes what it may not be given any
// more: what is older than something that was seen.
func (w *world) returns(s *state, i int) {
	a := &s.actors[i]
	for l, v := range a.buf {
		if !(s.ghost.can[l] &^ a.dead[l]).has(v) || a.ended {
			a.wrong = true
		}
		for k, p := range w.actors {
			if p.kind != reader && p.value == v {
				s.ghost.dead[l] |= s.actors[k].kills[l]
			}
		}
	}
}

// The steps of a mapping in front of those of a write; a fault's are a read's.
const (
	mStore = 100 + iota
	mWriteback
	mServe = 128 // and a write's steps behind it
)

// mapping is a program that maps the page, stores into it, and calls msync.
func (w *world) mapping(s state, i int, to emit) {
	a, p := &s.actors[i], w.actors[i]
	switch {
	case a.pc == rBegin:
		if s.cache.holder != 0 {
			return
		}
		s.cache.holder = int8(i + 1)
		w.serveRead(s, i, to)
	case a.pc < rReturn:
		w.serveRead(s, i, to)
	case a.pc == rReturn:
		w.returns(&s, i)
		s.cache = cache{valid: true, line: a.buf}
		*a = actor{pc: mStore, wrong: a.wrong}
		to(names[i], "fault: the page is mapped", s)
	case a.pc == mStore:
		w.begins(&s, i, p.lines, p.value)
		s.cache.line[0] = p.value
		a.pc = mWriteback
		to(names[i], "stores into the mapping", s)
	case a.pc == mWriteback:
		if s.cache.holder != 0 {
			return
		}
		s.cache.holder = int8(i + 1)
		a.buf, a.have, a.pc = s.cache.line, all, mServe+wLockShared
		to("kernel", "writes the mapped page back: "+a.buf.String(), s)
	case a.pc >= mServe && a.pc != done:
		a.pc -= mServe
		w.serveWrite(s, i, true, func(who, what string, n state) {
			if n.actors[i].pc != done {
				n.actors[i].pc += mServe
			}
			to(who, what, n)
		})
	}
}
