package recovery

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// OutageError is a failure that is not poison: the device is gone, the
// filesystem shut down, or nothing shows that the failure is isolated. Nothing
// was zeroed, recorded or repaired. It unwraps to the backing's errno.
type OutageError struct {
	Range ranges.Range
	Err   error
}

func (e *OutageError) Error() string {
	return fmt.Sprintf("the backing filesystem fails at %v, and not from poison alone: %v; check the device and its kernel log", e.Range, e.Err)
}

func (e *OutageError) Unwrap() error { return e.Err }

// RepairError says which step of a repair failed, and where. The page was left
// as it was, or its bytes are kept in the journal.
type RepairError struct {
	Step string // journal, share, write, raw, punch, free, read-back, sync, truncate, ledger
	Page ranges.Range
	Err  error
}

func (e *RepairError) Error() string {
	return fmt.Sprintf("repair of page %v failed at step %s: %v", e.Page, e.Step, e.Err)
}

func (e *RepairError) Unwrap() error { return e.Err }

// stepOf is the step at which a repair failed.
func stepOf(err error) string {
	var at *RepairError
	if errors.As(err, &at) {
		return at.Step
	}
	return "write"
}

// PoisonError is what strict semantics answers for a read of poison.
type PoisonError struct {
	Range ranges.Range
	Err   error
}

func (e *PoisonError) Error() string { return fmt.Sprintf("poison in %v: %v", e.Range, e.Err) }

func (e *PoisonError) Unwrap() error { return e.Err }

// Errno is the one place where the engine's errors become errnos for the
// application. A refused repair is EIO whatever stood behind it: ENOSPC of the
// state disk is no statement about the application's file.
func Errno(err error) syscall.Errno {
	var repair *RepairError
	var poison *PoisonError
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &repair), errors.As(err, &poison):
		return unix.EIO
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}

// mayBePoison reports whether an errno of the medium can mean a media error.
// Linux answers EIO for listed poison and EFAULT when the first byte was latent
// poison (fs/dax.c, dax_iomap_iter, 5.19 to 6.18; lab facts, core table);
// EHWPOISON stays inside the kernel and ENODATA is the block layer's word
// (BLK_STS_MEDIUM): both are taken to be safe. TestDaxProfile would notice.
func mayBePoison(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EFAULT) ||
		errors.Is(err, unix.EHWPOISON) || errors.Is(err, unix.ENODATA)
}

// isMachineCheck reports whether an errno is that of poison which a read has run
// into: the list may have it a moment later, or, where nobody feeds it, never
// (kernel facts 1, "Latent poison").
func isMachineCheck(err error) bool { return errors.Is(err, unix.EFAULT) }

// isGone reports whether an errno says that the device or server below is gone.
func isGone(err error) bool {
	for _, gone := range []unix.Errno{unix.ENODEV, unix.ENXIO, unix.ENOTCONN, unix.ESHUTDOWN, unix.ECONNABORTED, unix.ETIMEDOUT, unix.EREMOTEIO, unix.EUCLEAN} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// isDown reports whether an errno of what has nothing to do with a file's data says
// that the filesystem is down.
func isDown(err error) bool { return mayBePoison(err) || isGone(err) }

// cause is the word in ledger and events for how a failure showed.
func cause(err error) string {
	switch {
	case err == nil:
		return "short-read"
	case errors.Is(err, unix.EFAULT):
		return "efault"
	}
	return "eio"
}

// orEIO is the error of a call that did not do all it was asked to.
func orEIO(err error) error {
	if err == nil {
		return unix.EIO
	}
	return err
}
