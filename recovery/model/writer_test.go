package model

// op is one step of a repair, numbered as in repair.go.
type op uint8

const (
	opIntent   op = iota // (1) begin
	opImage              // (2) punch: an intent with an image for a whole page, too
	opClaim              // replay.claim
	opPunching           // (2) punch: the journal knows, the block is freed, the write gets a new one
	opPunch
	opClear    // (2) rewrite: what pmem_recovery_write does, first half
	opCopy     //     second half
	opCutBack  // (3) cutBack
	opSync     // (3) settle
	opCommit   // (4) Ledger.Commit: intent and rows in one
	opRecord   // (4) closeLater: the same, and the disk has it later
	opClose    // half of it, for mutations
	opMoveRows // the other half
	opUnlock   // (5)
)

var opNames = [...]string{"intent durable", "intent with an image durable", "intent renewed", "punching durable", "page punched", "page cleared", "page copied", "cut back",
	"page durable", "intent closed, rows moved", "end recorded, the disk later", "intent closed", "rows moved", "unlocked"}

// repairSteps is the protocol; plain is a write of whole pages.
func (w *world) repairSteps(plain bool) []op {
	switch {
	case w.steps != nil:
		return w.steps
	case w.punches && plain:
		return []op{opIntent, opImage, opPunching, opPunch, opCopy, opCutBack, opSync, opCommit, opUnlock}
	case w.punches:
		return []op{opIntent, opPunching, opPunch, opCopy, opCutBack, opSync, opCommit, opUnlock}
	case plain:
		return []op{opIntent, opClear, opCopy, opCutBack, opSync, opRecord, opUnlock}
	}
	return []op{opIntent, opClear, opCopy, opCutBack, opSync, opCommit, opUnlock}
}

// The steps of a write, but those of its repair, which begin at wRepair.
const (
	wBegin uint8 = iota
	wLockShared
	wPwrite
	wNote
	wUnlockShared
	wLock
	wPrepare
	wNoteLocked
	wAnswer
	wFsync
	wRepair
)

// begins notes that the write of v into m is asked for: what is there may be
// replaced from now on.
func (w *world) begins(s *state, i int, m mask, v value) {
	pending := values(0)
	for k, p := range w.actors {
		if s.actors[k].started && !s.actors[k].answered {
			pending |= p.value.set()
		}
	}
	a := &s.actors[i]
	a.started = true
	for l := range lines {
		if m.has(l) {
			a.kills[l] = s.ghost.can[l] &^ pending
			s.ghost.can[l] |= v.set()
		}
	}
}

// write is File.Write, and an fsync.
func (w *world) write(s state, i int, to emit) {
	p, a := w.actors[i], s.actors[i]
	if a.pc == wBegin {
		if s.cache.holder != 0 {
			return // the kernel has the page locked
		}
		w.begins(&s, i, p.lines, p.value)
		if w.maps() { // otherwise these are direct writes, side by side
			s.cache.holder = int8(i + 1)
		}
		for l := range lines {
			if s.cache.valid && p.lines.has(l) {
				s.cache.line[l] = p.value
			}
		}
		a = s.actors[i]
		for l := range lines {
			if p.lines.has(l) {
				a.buf[l] = p.value
			}
		}
		a.have, a.pc = p.lines, wLockShared
		s.actors[i] = a
		to(names[i], "asks to write "+a.buf.String(), s)
		return
	}
	w.serveWrite(s, i, false, to)
}

// serveWrite is the engine's part: a.buf[a.have] is to be written.
func (w *world) serveWrite(s state, i int, writeback bool, to emit) {
	a, me := &s.actors[i], names[i]
	switch {
	case a.pc <= wUnlockShared:
		w.writeShared(s, i, writeback, to)
	case a.pc <= wNoteLocked:
		w.writeExclusive(s, i, writeback, to)
	case a.pc == wAnswer:
		w.answer(&s, i)
		a.pc = wFsync
		s.cache.holder = 0
		to(me, "write: answered", s)
	case a.pc == wFsync:
		s.disk = s.now
		s.flush()
		s.ghost.synced = s.ghost.dead
		s.noteSynced()
		a.pc = done
		a.buf, a.have = page{}, 0
		to(me, "fsync: answered", s)
	default:
		w.mend(s, i, writeback, to)
	}
}

// writeShared is writeClean.
func (w *world) writeShared(s state, i int, writeback bool, to emit) {
	a, me, e := &s.actors[i], names[i], &s.engine
	switch a.pc {
	case wLockShared:
		if e.exclusive != 0 {
			return
		}
		if s.concerns() || s.engine.closing && !w.bugs.noEndClosing {
			if w.bugs.sharedSalvage {
				w.prepare(&s, i, writeback)
				a.made = true
			}
			a.pc = wLock
			to(me, "write: something is known of the page", s)
			return
		}
		e.shared |= line(i)
		a.pc = wPwrite
		to(me, "write: locked shared", s)
	case wPwrite:
		if s.now.poison == listed && a.have != all {
			e.shared &^= line(i)
			a.pc = wLock
			to(me, "pwrite: EFAULT", s)
			return
		}
		s.store(a.buf, a.have)
		a.pc = wUnlockShared
		if s.overwrites(a.buf, a.have, writeback) != 0 {
			a.pc = wNote
		}
		to(me, "pwrite", s)
	case wNote:
		w.recordGone(&s, s.overwrites(a.buf, a.have, writeback))
		a.pc = wUnlockShared
		to(me, "write: synced, and recorded", s)
	case wUnlockShared:
		e.writes++
		e.shared &^= line(i)
		a.pc = wAnswer
		to(me, "write: unlocked", s)
	}
}

// writeExclusive is File.write and mendingWrite up to the repair.
func (w *world) writeExclusive(s state, i int, writeback bool, to emit) {
	a, me, e := &s.actors[i], names[i], &s.engine
	switch a.pc {
	case wLock:
		if e.exclusive != 0 || e.shared != 0 {
			return
		}
		e.exclusive = int8(i + 1)
		e.epoch++
		e.writes++
		e.known = true
		a.pc = wPrepare
		to(me, "write: locked exclusively", s)
	case wPrepare: // endClosing; mendingWrite: lookFirst, writeGood, blame, prepare
		if s.engine.closing && !w.bugs.noEndClosing {
			s.flush()
		}
		if !e.bad && s.now.poison == listed || e.bad || s.image.has || s.rows[badLine] == rowLost {
			s.inspect()
		}
		if !e.bad {
			s.store(a.buf, a.have)
			a.pc = w.unlocking()
			if s.overwrites(a.buf, a.have, writeback) != 0 {
				a.pc = wNoteLocked
			}
			to(me, "pwrite, locked", s)
			return
		}
		if !a.made {
			w.prepare(&s, i, writeback)
		}
		a.pc = wRepair
		to(me, "salvaged; the page shall be "+a.buf.String(), s)
	case wNoteLocked:
		w.recordGone(&s, s.overwrites(a.buf, a.have, writeback))
		a.pc = w.unlocking()
		to(me, "write: synced, and recorded", s)
	}
}

// unlocking is the last step of a repair.
func (w *world) unlocking() uint8 { return wRepair + uint8(len(w.repairSteps(false))-1) }

// answer is the moment from which nothing older may be read.
func (w *world) answer(s *state, i int) {
	a := &s.actors[i]
	a.answered = true
	for l := range lines {
		s.ghost.dead[l] |= a.kills[l]
	}
}

// noteSynced notes what an fsync says of the writes that were answered before.
func (s *state) noteSynced() {
	for _, a := range s.actors {
		for l := range lines {
			if a.answered && a.kills[l].has(zero) {
				s.ghost.noZero |= line(l)
			}
		}
	}
}

// prepare works out what the page shall hold; missing lines are those not in
// have afterwards.
func (w *world) prepare(s *state, i int, writeback bool) {
	a := &s.actors[i]
	if a.have == all && !writeback && !w.tail {
		a.written, a.plain = all, true
		return
	}
	from, missing := s.salvaged()
	kept := all &^ missing
	for l := range lines {
		if !a.have.has(l) {
			a.buf[l] = from[l]
		}
	}
	written := a.have
	for l := range lines {
		if writeback && a.buf[l] == zero {
			written &^= line(l)
		}
	}
	a.have, a.written = written|kept, written
}

// mend is repair.run, step by step.
func (w *world) mend(s state, i int, writeback bool, to emit) {
	a, me := &s.actors[i], names[i]
	steps := w.repairSteps(a.plain)
	o := steps[a.pc-wRepair]
	switch o {
	case opIntent, opImage:
		in := intent{open: true, hasImage: !a.plain || o == opImage, image: a.buf, lost: s.lostLines(), missing: all &^ a.have,
			overwrites: a.written, sized: !w.bugs.noSize, boot: s.boot, time: s.clock}
		k := 0
		if s.intents[0].open {
			k = 1
		}
		s.intents[k] = in
	case opCommit:
		s.moveRows(a.written, all&^a.have)
		s.rowsDisk = s.rows
		s.closeIntents()
	case opRecord:
		s.moveRows(a.written, all&^a.have)
		s.image, s.engine.bad = salvaged{}, false
		s.engine.closing = true
	case opClose:
		s.closeIntents()
	case opMoveRows:
		s.moveRows(a.written, all&^a.have)
		s.rowsDisk = s.rows
	case opUnlock:
		s.engine.epoch++
		s.engine.exclusive = 0
	default:
		w.medium(&s, o, a.buf)
	}
	a.pc++
	if int(a.pc-wRepair) == len(steps) {
		a.pc = wAnswer
		a.written, a.plain, a.made = 0, false, false
	}
	to(me, "repair: "+opNames[o], s)
}
