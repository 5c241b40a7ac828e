package recovery

import (
	"errors"
	"fmt"

	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// ReplayError is a repair that a crash has left open, and that can't be finished.
type ReplayError struct {
	Path      string // of the file, when the repair was begun
	Range     ranges.Range
	StateDisk bool // what fails is the disk of the state directory, not the backing filesystem
	Err       error
}

func (e *ReplayError) Error() string {
	where := "the backing filesystem"
	if e.StateDisk {
		where = "the disk of the state directory"
	}
	return fmt.Sprintf("finishing the repair of %q %v that a crash left open: %v; nothing was lost: mount again when %s works", e.Path, e.Range, e.Err, where)
}

// Unwrap is what failed.
func (e *ReplayError) Unwrap() error { return e.Err }

// stateFails reports whether it is the state disk that err comes from.
func (e *Engine) stateFails(err error) bool {
	return errors.Is(err, journal.ErrFull) || e.Journal.Stats().Err != nil || e.Ledger.Health() != nil
}
