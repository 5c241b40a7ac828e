package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/mendfs/mendfs/mount"
)

// Exit codes, after fsck(8). `lost` adds them up: 5 is loss that was repaired
// and loss that is left.
const (
	exitClean       = 0  // done; nothing is lost
	exitRepaired    = 1  // bytes were lost, and the media are clean again
	exitLossLeft    = 4  // lost bytes whose poison is still there
	exitOperational = 8  // it did not work
	exitUsage       = 16 // it was asked for wrongly
	exitCancelled   = 32 // interrupted before it was done
)

// outcome is the answer of a verb that worked: an exit code, and nothing to
// complain about.
type outcome int

func (o outcome) Error() string { return fmt.Sprintf("exit status %d", int(o)) }

// failure is an operational error together with the way out.
type failure struct {
	err  error
	next string
}

func (f *failure) Error() string { return f.err.Error() + "; " + f.next }
func (f *failure) Unwrap() error { return f.err }

// usageError is a command line that can't be obeyed, with the way out.
type usageError struct {
	msg, next string
}

func (e *usageError) Error() string { return e.msg + "; " + e.next }

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var (
		answer outcome
		usage  *usageError
		asked  *mount.Error
	)
	switch {
	case err == nil:
		return exitClean
	case errors.As(err, &answer):
		return int(answer)
	case errors.Is(err, context.Canceled):
		return exitCancelled
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &asked):
		return asked.Exit
	}
	return exitOperational
}
