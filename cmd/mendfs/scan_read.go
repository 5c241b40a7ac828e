package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/cmd/mendfs/scan"
	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// read reads all of the target, which is on the given device of persistent memory,
// or on none.
func (s *scanned) read(ctx context.Context, o scanOptions, running *mount.Running, device string, stderr io.Writer) error {
	if device != "" && !o.force {
		if safety := pmem.AskCopySafety(); !safety.Safe {
			return &usageError{
				"reading all of " + device + " could stop the machine where it meets poison that is not listed: " + safety.Why,
				"add --force if that may happen",
			}
		}
	}
	target, err := filepath.Abs(o.target)
	if err != nil {
		return err
	}
	cursor, err := openCursor(o.cursor, target, stderr)
	if err != nil {
		return err
	}
	r, err := newReading(cursor)
	if err != nil {
		return fmt.Errorf("%s: %w", o.cursor, err)
	}
	if running != nil {
		r.prefix = running.Rel
	}
	meter := newMeter(stderr, isTerminal(stderr), func() (int64, error) { return scan.Size(ctx, target) })
	err = (&scan.Scan{Root: target, Cursor: cursor, Found: r.bad, Skip: r.skip, At: meter.at}).Run(ctx)
	meter.end()
	s.places = append(s.places, r.Found...)
	if len(r.Found) > 0 {
		s.code |= exitLossLeft
	}
	if err == nil && cursor != nil {
		err = cursor.Remove()
	}
	if r.Skipped > 0 {
		err = errors.Join(err, fmt.Errorf("%s could not be read, the first is %s", count(r.Skipped, "file"), r.Why))
	}
	if ctx.Err() != nil && cursor != nil {
		err = errors.Join(err, fmt.Errorf("the same command goes on where it was: %s", o.cursor))
	}
	return err
}

func openCursor(path, target string, stderr io.Writer) (*scan.Cursor, error) {
	if path == "" {
		return nil, nil
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", target, err)
	}
	defer unix.Close(fd)
	fs, err := fileid.Filesystem(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", target, err)
	}
	cursor, err := scan.OpenCursor(path, target, fs)
	var other *scan.OtherError
	switch {
	case errors.As(err, &other):
		return nil, &usageError{other.Error(), "give another file, or remove this one"}
	case err != nil:
		return nil, &failure{err, "give a file that can be written"}
	case cursor.Resumes():
		fmt.Fprintf(stderr, "mendfs scan: going on where an earlier scan was interrupted\n")
	}
	return cursor, nil
}

// reading takes what a scan finds.
type reading struct {
	outcomes
	prefix string // of paths: the target below the root of its mount
}

// outcomes is what a scan that goes on has to know of what was read before.
type outcomes struct {
	Found   []control.Place `json:"found"`
	Skipped int             `json:"skipped"` // files that could not be read
	Why     string          `json:"why"`     // of the first
}

// newReading begins with what was saved with the cursor, which may be nil, and has it
// saved with that again.
func newReading(cursor *scan.Cursor) (*reading, error) {
	r := &reading{prefix: "."}
	if cursor == nil {
		return r, nil
	}
	cursor.Keep(&r.outcomes)
	return r, cursor.Found(&r.outcomes)
}

func (r *reading) bad(b scan.Bad) {
	p := control.Place{Use: "file", Range: b.Range, Found: []string{"read"}, Error: b.Err.Error(), Next: nextForFile}
	p.Path, p.PathB64 = control.Wire(filepath.Join(r.prefix, b.Path))
	r.Found = append(r.Found, p)
}

func (r *reading) skip(path string, err error) {
	if r.Skipped++; r.Skipped == 1 {
		r.Why = fmt.Sprintf("%s: %v", quote(filepath.Join(r.prefix, path)), err)
	}
}
