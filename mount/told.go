package mount

import (
	"errors"
	"os"
	"slices"
	"syscall"
)

// news is those of errs that were not told: closing what could not be opened in
// order often fails for the same reason.
func news(errs []error, told error) error {
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil || isTold(err, told) })...)
}

// isTold reports whether told has err, or all that err wraps. The same error
// number alone is not the same error: it may be of another file or step.
func isTold(err, told error) bool {
	if _, number := err.(syscall.Errno); number {
		return false
	}
	if errors.Is(told, err) || sameFailure(err, told) {
		return true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		inner := e.Unwrap()
		return inner != nil && isTold(inner, told)
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(part error) bool { return !errors.Is(told, part) && !isTold(part, told) })
	}
	return false
}

// sameFailure reports whether err is of a file for which told says the same:
// package os makes a new error for each call.
func sameFailure(err, told error) bool {
	now, ok := err.(*os.PathError)
	var before *os.PathError
	return ok && errors.As(told, &before) && now.Op == before.Op && now.Path == before.Path && errors.Is(before.Err, now.Err)
}
