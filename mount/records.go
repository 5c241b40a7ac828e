package mount

import (
	"context"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
)

// records answers the questions about what a state directory has recorded, for
// a running mount and for a directory without one alike.
type records struct {
	ledger   *ledger.Ledger
	journal  *journal.Journal
	eventLog string // path
	within   int    // the backing directory; -1 if it isn't there
	running  bool   // a mount serves, and repairs
}

// EachLost hands over the ledger's ranges in the files that q names, with names that
// the files have now. There is memory for the rows of one file at a time, packed.
func (r *records) EachLost(ctx context.Context, q control.LostQuery, each func(ledger.Row) error) error {
	in, err := r.scope(ctx, q.Path, r.lossy(q.All))
	if err != nil {
		return err
	}
	for _, file := range r.ledger.Files(q.All) {
		name, wanted := in(file.ID, file.Path)
		if !wanted {
			continue
		}
		for row, err := range r.ledger.Rows(file.ID.Key(), q.All) {
			if err != nil {
				return failed(err, "see the state disk", "the ledger can't be read")
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			row.Path = name
			if err := each(row); err != nil {
				return err
			}
		}
	}
	return nil
}

// Lost is what EachLost hands over.
func (r *records) Lost(ctx context.Context, q control.LostQuery) ([]ledger.Row, error) {
	return control.AllLost(ctx, r, q)
}

// lossy is the files that have rows.
func (r *records) lossy(history bool) iter.Seq2[seenFile, error] {
	return func(yield func(seenFile, error) bool) {
		for _, f := range r.ledger.Files(history) {
			if !yield(seenFile{f.ID, f.Path}, nil) {
				return
			}
		}
	}
}

// Events hands over the lines of the event log.
func (r *records) Events(ctx context.Context, q control.EventQuery, line func([]byte) error) error {
	if err := readEvents(ctx, r.eventLog, q, line); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	return nil
}

// count fills in what the records say about the state of things.
func (r *records) count(s *control.Status) error {
	for row, err := range r.ledger.All(false) {
		if err != nil {
			return failed(err, "see the state disk", "the ledger can't be read")
		}
		c := &s.Lost
		if row.State == ledger.Reinitialized {
			c = &s.Reinitialized
		}
		c.Ranges++
		c.Bytes += row.Len
	}
	stats := r.journal.Stats()
	s.OpenIntents, s.KeptImages = len(r.open()), stats.Kept+stats.Pending
	return nil
}

// openBeneath opens path, relative to root and never leading out of it.
func openBeneath(root int, path string, flags uint64) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}
