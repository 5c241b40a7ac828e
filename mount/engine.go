package mount

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/media/sim"
)

// openRecords opens the event log, the ledger and the journal.
func (m *Mount) openRecords(*target) error {
	var err error
	m.within, m.running = m.root, true
	m.eventLog = m.state.file(eventsFile)
	m.events, err = event.New(event.Options{Path: m.eventLog, Extra: m.config.EventLog, Human: m.config.Stderr})
	if err != nil {
		return failed(err, "give a file that can be written, in a directory that exists", "the event log can't be opened")
	}
	m.onClose(m.events.Close)
	if m.ledger, err = ledger.Open(m.state.file(ledgerFile), m.state.meta.FS, m.state.meta.Root); err != nil {
		return damaged(err, m.state.path)
	}
	m.onClose(m.ledger.Close)
	if m.journal, err = journal.Open(m.state.file(journalFile), m.state.meta.FS); err != nil {
		return damaged(err, m.state.path)
	}
	m.onClose(m.journal.Shutdown)
	return nil
}

// openEngine makes the engine over the medium and finishes interrupted repairs.
func (m *Mount) openEngine(*target) error {
	medium, err := m.openMedium()
	if err != nil {
		return err
	}
	m.engine, err = recovery.New(recovery.Config{
		Medium: medium, Journal: m.journal, Ledger: m.ledger, Events: m.events,
		Root: m.root, FS: m.state.meta.FS, Semantics: m.config.semantics, ReadOnly: m.config.ReadOnly,
		VerifyWrites: m.config.VerifyWrites, Breaker: m.config.Breaker,
	})
	if err != nil {
		return failed(err, "", "the recovery engine can't start")
	}
	m.onClose(m.engine.Close)
	if err := m.engine.Replay(); err != nil {
		return failed(err, m.replayNext(err)+" and mount again; don't use "+m.backing+" directly before", "interrupted repairs can't be finished")
	}
	return nil
}

// replayNext is what to do where repairs that a crash left open can't be finished.
func (m *Mount) replayNext(err error) string {
	var unfinished *recovery.ReplayError
	ofState := errors.As(err, &unfinished) && unfinished.StateDisk
	switch {
	case errors.Is(err, journal.ErrFull), ofState && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)):
		return "make room on the disk of " + m.state.path + " (df, df -i)"
	case ofState:
		return "mend the disk of " + m.state.path + " (see dmesg)"
	}
	return "mend what it names"
}

func (m *Mount) openMedium() (media.Medium, error) {
	if m.config.Simulate == "" {
		return m.realMedium()
	}
	real := media.New(m.root)
	m.onClose(real.Close)
	var err error
	m.sim, err = sim.New(sim.Options{Profile: m.config.Simulate, Store: m.state.file(poisonFile), Root: m.root, Below: real})
	if err != nil {
		return nil, failed(err, "", "the simulated medium can't be opened")
	}
	m.onClose(m.sim.Close)
	m.list = simulatedList{m.sim}
	return m.sim, nil
}
