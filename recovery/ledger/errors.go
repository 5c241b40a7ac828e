package ledger

import (
	"errors"
	"fmt"
)

// Why a store can't be used; always inside a *StoreError.
var (
	ErrForeign = errors.New("belongs to another filesystem or directory")
	ErrVersion = errors.New("was written by a newer version")
	ErrDamaged = errors.New("is damaged")
	ErrLocked  = errors.New("is in use by another process")
)

// What a change can be refused with.
var (
	ErrFull     = errors.New("ledger: the state disk refuses records, and no more fit into memory: make room or repair the disk of the state directory")
	ErrReadOnly = errors.New("ledger: opened for reading only")
	ErrClosed   = errors.New("ledger: closed")
)

// StoreError says which store can't be used, why, and the way out.
type StoreError struct {
	Path string
	Kind error // one of the four above
	Err  error // what was found
}

func (e *StoreError) Error() string {
	return fmt.Sprintf("ledger %s %v: %v; %s", e.Path, e.Kind, e.Err, e.next())
}

func (e *StoreError) Unwrap() []error { return []error{e.Kind, e.Err} }

func (e *StoreError) next() string {
	switch e.Kind {
	case ErrForeign:
		return "name another state directory, or move this one away"
	case ErrVersion:
		return "use the newer mendfs, or another state directory"
	case ErrLocked:
		return "unmount the other mount first, or ask it through its mountpoint"
	}
	return "restore it from a copy, or move it away (what was lost until now is then unknown)"
}
