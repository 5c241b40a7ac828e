package journal

import (
	"errors"
	"fmt"
)

// What Open, View and the durable calls wrap.
var (
	ErrDamaged     = errors.New("the journal is damaged")
	ErrForeign     = errors.New("the journal is of another filesystem")
	ErrVersion     = errors.New("the journal is of a newer version of mendfs")
	ErrFull        = errors.New("the state disk is full")
	ErrSalvageFull = errors.New("the salvage area is full")
	ErrReadOnly    = errors.New("the journal was opened for reading")
	ErrClosed      = errors.New("the journal is closed")
	ErrNoIntent    = errors.New("no such intent")
	ErrUnreadable  = errors.New("the state disk could not give back an image when the journal was rewritten")
)

// DamageError says where a journal is damaged; it is an ErrDamaged.
type DamageError struct {
	Path string
	Off  int64 // of the record, or 0 for the header
	What string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("journal %s: damaged at offset %d: %s; nothing was changed: keep a copy of the state directory,"+
		" and restore the journal from a backup, or move it away to go on without its unfinished repairs and salvaged pages",
		e.Path, e.Off, e.What)
}

// Is makes every DamageError an ErrDamaged.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }
