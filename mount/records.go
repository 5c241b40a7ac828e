package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// records answers the questions about what a state directory has recorded, for
// a running mount and for a directory without one alike.
type records struct {
	ledger   *ledger.Ledger
	journal  *journal.Journal
	eventLog string // path
	within   int    // the backing directory; -1 if it isn't there
}

// Lost is the ledger's ranges in the files that q names.
func (r *records) Lost(_ context.Context, q control.LostQuery) ([]ledger.Row, error) {
	is, err := r.named(q.Path)
	if err != nil {
		return nil, err
	}
	rows := []ledger.Row{} // an empty list in JSON, not null
	for row, err := range r.ledger.All(q.All) {
		if err != nil {
			return nil, failed(err, "see the state disk", "the ledger can't be read")
		}
		if is(row.File, row.Path) {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// Pending is the repairs that are under way or were given up.
func (r *records) Pending(_ context.Context, path string) ([]control.Pending, error) {
	is, err := r.named(path)
	if err != nil {
		return nil, err
	}
	list := []control.Pending{}
	add := func(ins []journal.Intent, kept bool) {
		for _, in := range ins {
			if is(in.File, in.Path) {
				list = append(list, pending(in, kept))
			}
		}
	}
	add(r.open(), false)
	add(r.journal.Kept(), true)
	for owed, err := range r.journal.Images(true) {
		if err != nil {
			return nil, failed(err, "see the state disk", "an image in the journal can't be read")
		}
		if is(owed.File, owed.Path) {
			list = append(list, control.Pending{
				File: owed.File, Path: owed.Path, Range: ranges.Page(owed.Page), Kept: true,
				Image: owed.Data, Missing: owed.Missing,
			})
		}
	}
	return list, nil
}

// open is the intents whose repair is not finished: the ledger may know of one
// as closed that the journal has not yet marked.
func (r *records) open() []journal.Intent {
	return slices.DeleteFunc(r.journal.Intents(), func(in journal.Intent) bool { return r.ledger.Closed(in.ID) })
}

func pending(in journal.Intent, kept bool) control.Pending {
	return control.Pending{
		ID: in.ID, File: in.File, Path: in.Path, Range: in.Range, Size: in.End,
		Time: time.Unix(0, in.Time).UTC(), Kept: kept, Image: in.Image, Missing: in.Missing,
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

// named tells which records belong to the file, or to all files at and below
// the directory, that path names now, relative to the root. If nothing has that
// name any more, those of the files that had it when they were last seen do.
func (r *records) named(path string) (func(fileid.ID, string) bool, error) {
	path = filepath.Clean("/" + path)[1:]
	if path == "" {
		return func(fileid.ID, string) bool { return true }, nil
	}
	byPath := func(_ fileid.ID, p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
	fd, err := openBeneath(r.within, path, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EBADF) {
		return byPath, nil
	}
	if err != nil {
		return nil, failed(err, "give a file or a directory of the mount", "%s can't be looked up", path)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return byPath, nil
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return nil, err
	}
	key := id.Key() // the same for all its hard links
	return func(id fileid.ID, _ string) bool { return id.Key() == key }, nil
}

// openBeneath opens path, relative to root and never leading out of it.
func openBeneath(root int, path string, flags uint64) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}
