// Package failpoint names the instants at which tests let the daemon die or
// the power go. A product has none of it: without the build tag "failpoints"
// Points is empty and Hit does nothing.
//
// With the tag a test in the process is told of each instant (Points.Set), and
// a process kills itself where its environment says so:
//
//	MENDFS_FAILPOINT=pages-written:3   at the third pages-written
//	MENDFS_FAILPOINT=any:40            at the fortieth instant of whatever name
package failpoint

// Step is an instant. Its name is the one in the environment.
type Step string

// The steps of a repair, in their order (recovery.repair).
const (
	IntentDurable   Step = "intent-durable"   // (1)
	PagePunching    Step = "page-punching"    // the intent knows of the punch that comes
	PagePunched     Step = "page-punched"     // between the two calls of the punch rung
	PageZeroing     Step = "page-zeroing"     // the journal holds the page, the device is to be told
	SharersRecorded Step = "sharers-recorded" // what other files lose with it is durable, the device is to be told
	PageZeroed      Step = "page-zeroed"      // the device has cleared it, the file is not written
	PageCleared     Step = "page-cleared"     // one page of several was written
	PagesWritten    Step = "pages-written"    // (2)
	PagesCutBack    Step = "pages-cut-back"   // the file has its right size
	PagesDurable    Step = "pages-durable"    // (3)
	IntentClosed    Step = "intent-closed"    // (4)
)

// The steps of replay.
const (
	ReplayBegins   Step = "replay-begins" // of one intent
	ReplayWritten  Step = "replay-written"
	ReplayRestored Step = "replay-restored" // size and time, durable
	ReplaySettled  Step = "replay-settled"  // in the ledger, not in the journal
	ReplayOwed     Step = "replay-owed"     // the image is saved as owed, the intent still open
	ReplayKept     Step = "replay-kept"     // a conflict's image is kept, the ledger not told
	ReplayEnds     Step = "replay-ends"     // no intent is left, the checkpoint is to come
)

// The steps of the journal and of the ledger.
const (
	JournalAppended  Step = "journal-appended"
	JournalSynced    Step = "journal-synced"
	JournalFresh     Step = "journal-fresh" // a fresh file is durable, under another name
	JournalReplaced  Step = "journal-replaced"
	LedgerWriting    Step = "ledger-writing"
	LedgerWritten    Step = "ledger-written"
	LedgerCheckpoint Step = "ledger-checkpoint" // the journal has forgotten intents, the ledger has not
)

// Steps is all of them.
func Steps() []Step {
	return []Step{
		IntentDurable, PagePunching, PagePunched, PageZeroing, SharersRecorded, PageZeroed, PageCleared, PagesWritten, PagesCutBack, PagesDurable, IntentClosed,
		ReplayBegins, ReplayWritten, ReplayRestored, ReplaySettled, ReplayOwed, ReplayKept, ReplayEnds,
		JournalAppended, JournalSynced, JournalFresh, JournalReplaced, LedgerWriting, LedgerWritten, LedgerCheckpoint,
	}
}
