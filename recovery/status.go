package recovery

import (
	"sync/atomic"
	"time"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// counters are totals since the mount.
type counters struct {
	recoveredReads, salvagedBytes, lostBytes   atomic.Int64
	repairedPages, failedRepairs, outageErrors atomic.Int64
	passedOn, replayed                         atomic.Int64
}

// Status is the engine's part of `mendfs status`.
type Status struct {
	Semantics      string `json:"semantics"`
	VerifyWrites   bool   `json:"verify_writes"`   // what is written is read back
	KnownBadPages  int64  `json:"known_bad_pages"` // of files in use
	OpenIntents    int    `json:"open_intents"`
	RecoveredReads int64  `json:"recovered_reads"`
	SalvagedBytes  int64  `json:"salvaged_bytes"`
	LostBytes      int64  `json:"lost_bytes"` // given up since the mount; the ledger has all
	RepairedPages  int64  `json:"repaired_pages"`
	FailedRepairs  int64  `json:"failed_repairs"`
	OutageErrors   int64  `json:"outage_errors"`
	PassedOn       int64  `json:"poison_errors"` // reads of poison that got its error: strict semantics
	Replayed       int64  `json:"replayed_intents"`
	Outage         bool   `json:"outage"`       // there was an outage error within the last minute
	Breaker        bool   `json:"breaker_open"` // true: uncorroborated failures are passed through for now
	BreakerPages   int    `json:"breaker_pages"`
}

// Status reports totals since the mount and what is known now.
func (e *Engine) Status() Status {
	s := Status{
		Semantics:      e.Semantics.Name,
		VerifyWrites:   e.VerifyWrites,
		OpenIntents:    len(e.Journal.Intents()),
		RecoveredReads: e.counters.recoveredReads.Load(),
		SalvagedBytes:  e.counters.salvagedBytes.Load(),
		LostBytes:      e.counters.lostBytes.Load(),
		RepairedPages:  e.counters.repairedPages.Load(),
		FailedRepairs:  e.counters.failedRepairs.Load(),
		OutageErrors:   e.counters.outageErrors.Load(),
		PassedOn:       e.counters.passedOn.Load(),
		Replayed:       e.counters.replayed.Load(),
		Outage:         e.outage.isOn(time.Now()),
		Breaker:        e.breaker.open(time.Now()),
		BreakerPages:   e.Config.Breaker,
	}
	for _, i := range e.damagedInodes() {
		if d := i.damage.Load(); d != nil {
			d.mu.Lock()
			s.KnownBadPages += (d.bad.Bytes() + d.unsure.Bytes() + d.suspected.Bytes()) / ranges.PageSize
			d.mu.Unlock()
		}
	}
	return s
}
