package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

type scanOptions struct {
	read, force, json bool
	cursor            string // a file
	target            string
}

func newScan() *cobra.Command {
	var o scanOptions
	cmd := &cobra.Command{
		Use:   "scan [--read [--cursor-file FILE]] BACKING|MOUNTPOINT",
		Short: "which files have poison, and where",
		Long: `scan says what the bad sectors are used for that the kernel lists (badblocks), without
reading data: which bytes of which files, free space, or the filesystem's own data, and what
to do about each. Of a simulated mount it says what poison is known.

--read reads every byte besides, and finds what no list has. Through a mount the reads
are recovered as any program's are, and lost bytes get into the ledger; of a directory that is
not mounted by mendfs nothing is changed. It reads at the lowest priority, past the page cache,
and tells its progress on standard error. With --cursor-file, a scan that was interrupted
goes on where it was when it is called again with the same FILE.

Where the kernel would not survive to meet poison that it has not listed, --read is refused
without --force: 'mendfs doctor' says why.

Exit status, added up: 0 no poison but in free space, 1 loss that was repaired meanwhile,
4 poison in files or the filesystem, 8 it did not work for all, 16 wrong usage, 32 interrupted.`,
		Example: `  mendfs scan /srv/db
  mendfs scan --read --cursor-file /var/tmp/db.cursor /srv/db`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = args[0]
			if cmd.Flags().Changed("cursor-file") && o.cursor == "" {
				return &usageError{"--cursor-file is empty", "give it a value, or leave it out"}
			}
			if !o.read && (o.cursor != "" || o.force) {
				return &usageError{"--cursor-file and --force go with --read", "leave them out"}
			}
			return runScan(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.read, "read", false, "read every byte")
	f.StringVar(&o.cursor, "cursor-file", "", "with --read: keep in `FILE` how far it is, and go on there if it was interrupted")
	f.BoolVar(&o.force, "force", false, "with --read: also where latent poison would stop the machine")
	f.BoolVar(&o.json, "json", false, "print JSON; \"complete\" is false in it where not all could be read or asked")
	return cmd
}

// scanned is what a scan has found so far.
type scanned struct {
	places  []control.Place
	code    outcome
	partial bool // there may be more
}

func runScan(ctx context.Context, o scanOptions, stdout, stderr io.Writer) error {
	began := time.Now()
	running, err := mountOf(o.target)
	if err != nil {
		return err
	}
	var found scanned
	listed, err := listedPoison(ctx, o, running)
	switch {
	case err != nil:
		return err
	case listed.List != "":
		found.add(listed, stderr)
	case !o.read:
		return &failure{fmt.Errorf("nobody keeps a list of bad sectors for %s: it is no directory on persistent memory", quote(o.target)), "mendfs scan --read finds what can't be read"}
	}
	if o.read {
		err = found.read(ctx, o, running, listed.Device, stderr)
		var usage *usageError
		if errors.As(err, &usage) {
			return err
		}
		found.note(err, stderr)
		if running != nil {
			found.note(found.addRecovered(running, began), stderr)
		}
	}
	if err := found.print(o.json, stdout, stderr); err != nil {
		return err
	}
	if found.code == exitClean {
		return nil
	}
	return found.code
}

// mountOf is the running mount that the target lies in; nil if it lies in none.
func mountOf(target string) (*mount.Running, error) {
	running, err := mount.Find(target)
	var refused *mount.Error
	if errors.As(err, &refused) && refused.Next == mount.MountPath {
		return nil, nil
	}
	return running, err
}

func listedPoison(ctx context.Context, o scanOptions, running *mount.Running) (control.Scan, error) {
	if running != nil {
		return running.Dial().Scan(ctx, running.Rel)
	}
	dir, err := filepath.Abs(o.target)
	if err != nil {
		return control.Scan{}, err
	}
	return mount.ScanDirectory(ctx, dir)
}

// add takes over what is listed.
func (s *scanned) add(listed control.Scan, stderr io.Writer) {
	s.places = append(s.places, listed.Places...)
	for _, p := range listed.Places {
		if p.Use != "free" {
			s.code |= exitLossLeft
		}
	}
	if !listed.Complete {
		s.partial = true
		fmt.Fprintln(stderr, "mendfs scan: the kernel's list is full, and may lack some; next: mendfs scan --read")
	}
	if listed.Skipped > 0 {
		s.note(fmt.Errorf("%s could not be asked where they lie (%s); next: scan as root", count(listed.Skipped, "file"), listed.Why), stderr)
	}
}

// note tells what did not work, and goes on.
func (s *scanned) note(err error, stderr io.Writer) {
	switch {
	case err == nil:
		return
	case errors.Is(err, context.Canceled):
		s.code |= exitCancelled
	default:
		s.code |= exitOperational
	}
	s.partial = true
	fmt.Fprintf(stderr, "mendfs scan: %s\n", oneLine(err))
}

// addRecovered adds what the mount has lost in what was read, and notes what it
// has repaired since the scan began.
func (s *scanned) addRecovered(running *mount.Running, began time.Time) error {
	query := control.LostQuery{Path: running.Rel}
	return running.Dial().EachLost(context.Background(), query, func(row ledger.Row) error { // also of a scan that was interrupted
		switch {
		case row.State == ledger.Lost:
			s.code |= exitLossLeft
			p := control.Place{Use: "file", Range: row.Range, Found: []string{"recovered"}, Next: nextForFile}
			p.Path, p.PathB64 = control.Wire(row.Path)
			s.places = append(s.places, p)
		case row.Changed.After(began):
			s.code |= exitRepaired
		}
		return nil
	})
}

// nextForFile is what to do about poison in a file.
const nextForFile = "overwrite it, or put the file back from a copy"

// print writes what was found: JSON, or a table, and what to do on stderr.
func (s *scanned) print(asJSON bool, stdout, stderr io.Writer) error {
	s.tidy()
	if asJSON {
		return s.printJSON(stdout)
	}
	if len(s.places) == 0 {
		if s.code == exitClean {
			fmt.Fprintln(stderr, "no poison was found")
		}
		return nil
	}
	table := [][]string{{"RANGE", "USE", "FOUND", "SECTOR", "PATH"}}
	told := map[string]bool{}
	for _, p := range s.places {
		sector := "-"
		if p.Sector != nil {
			sector = fmt.Sprintf("%s %d", p.Device, *p.Sector)
		}
		name := "-"
		switch {
		case p.Name() != "":
			name = quote(p.Name())
		case p.Ino != 0:
			name = fmt.Sprintf("inode %d", p.Ino)
		}
		table = append(table, []string{p.Range.String(), p.Use, strings.Join(p.Found, "+"), sector, name})
	}
	if err := printTable(stdout, table); err != nil {
		return err
	}
	for _, p := range s.places {
		if what := p.Use + ": " + p.Next; p.Next != "" && !told[what] {
			told[what] = true
			fmt.Fprintf(stderr, "next, %s\n", control.Printable(what))
		}
	}
	return nil
}

// printJSON says, too, whether that is all there is.
func (s *scanned) printJSON(w io.Writer) error {
	answer := struct {
		Version  int             `json:"version"`
		Complete bool            `json:"complete"` // false: something could not be read or asked, and there may be more
		Scan     []control.Place `json:"scan"`
	}{control.Version, !s.partial, list(s.places)}
	return json.NewEncoder(w).Encode(answer)
}

// tidy puts what was found in order. What a read has found of a listed piece says no
// more than the list, which knows the sector.
func (s *scanned) tidy() {
	listed := map[string][]*control.Place{}
	for i, p := range s.places {
		if p.Use == "file" && isListed(p) {
			listed[p.Name()] = append(listed[p.Name()], &s.places[i])
		}
	}
	var out []control.Place
	for _, p := range s.places {
		if p.Use != "file" || isListed(p) {
			continue
		}
		for _, rest := range explain(p, listed[p.Name()]) {
			p.Range = rest
			out = append(out, p)
		}
	}
	out = append(out, slices.DeleteFunc(s.places, func(p control.Place) bool { return p.Use == "file" && !isListed(p) })...)
	slices.SortStableFunc(out, func(a, b control.Place) int {
		return cmp.Or(strings.Compare(a.Name(), b.Name()), cmp.Compare(a.Off, b.Off))
	})
	s.places = out
}

func isListed(p control.Place) bool {
	return slices.Contains(p.Found, "badblocks") || slices.Contains(p.Found, "simulated")
}

// explain is what of p is not explained by listed pieces of the same file, which are
// told that they were found by p, too. One bad sector fails a read of its page.
func explain(p control.Place, listed []*control.Place) []ranges.Range {
	known := ranges.Of()
	for _, l := range listed {
		at := l.Range
		if slices.Contains(p.Found, "read") {
			at = at.Widen(ranges.PageSize)
		}
		if !at.Overlaps(p.Range) {
			continue
		}
		known.Add(at)
		for _, found := range p.Found {
			if !slices.Contains(l.Found, found) {
				l.Found = append(l.Found, found)
			}
		}
	}
	return slices.Collect(known.Gaps(p.Range))
}

// isTerminal reports whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
