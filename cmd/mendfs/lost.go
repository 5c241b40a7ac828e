package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
)

type lostOptions struct {
	all, pending, json, drop bool
	format                   string // table, json, mapfile
	export                   string // a directory
	state, target            string
}

func newLost() *cobra.Command {
	var o lostOptions
	cmd := &cobra.Command{
		Use:   "lost [--all|--pending|--export DIR] PATH|MOUNTPOINT [--state DIR]",
		Short: "list lost ranges",
		Long: `lost lists the bytes that were lost in a file, or in all files below a directory:
in state "lost" the poison is still there, in state "reinitialized" the media are clean
and the bytes are zero. --all adds what was overwritten or healed since.
--pending lists repairs that are not finished instead, and what to do about each.
--export writes the images that mendfs keeps of pages to files in DIR, which must not
exist or be empty, with a manifest.json that says what they are; those that can't be
read are named, and make the exit status 8. --drop then forgets those of conflicts.
--format mapfile describes one file as ddrescue's mapfile.

Files are found by what they are called now, whatever they were called when they were
damaged, and by any of their hard links. A directory is searched if anything is lost.

With --state the answer comes from a state directory, also when nothing is mounted;
PATH is then optional, and relative to the root of the mount if it is not absolute.
A PATH that is not there is an error, unless the records have that name.

Exit status, added up: 0 nothing is lost (or exported), 1 loss that was repaired, 4 loss
left (or repairs pending), 8 it did not work, 16 wrong usage.`,
		Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = argument(args)
			if err := o.check(); err != nil {
				return err
			}
			return runLost(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.all, "all", false, "with history: overwritten and healed ranges too")
	f.BoolVar(&o.pending, "pending", false, "repairs that are not finished")
	f.Var(dirFlag{&o.export}, "export", "write the images that are kept of pages to files in the new directory `DIR`")
	f.BoolVar(&o.drop, "drop", false, "with --export: forget the images of conflicts once they are written")
	addState(f, &o.state)
	f.StringVar(&o.format, "format", "table", "print in `FORMAT`: table, json, or mapfile, which describes one file for ddrescue")
	f.BoolVar(&o.json, "json", false, "print JSON: the same as --format json")
	return cmd
}

// check refuses what can't be meant, and makes --json the format.
func (o *lostOptions) check() error {
	if o.json && o.format == "table" {
		o.format = "json"
	}
	switch {
	case o.all && o.pending:
		return &usageError{"--all and --pending exclude each other", "give one of them"}
	case o.export != "" && (o.all || o.pending):
		return &usageError{"--export excludes --all and --pending", "give one of them"}
	case o.drop && o.export == "":
		return &usageError{"--drop goes with --export", "add --export DIR: what is forgotten is written there first"}
	case o.format != "table" && o.format != "json" && o.format != "mapfile":
		return &usageError{fmt.Sprintf("%q is no format", o.format), "use table, json or mapfile"}
	case o.json && o.format != "json":
		return &usageError{"--json and --format " + o.format + " exclude each other", "give one of them"}
	case o.format == "mapfile" && (o.all || o.pending || o.export != ""):
		return &usageError{"a mapfile has what is lost in one file now, and nothing else", "leave out --all, --pending and --export"}
	}
	o.json = o.format == "json"
	return nil
}

// argument is the one optional target of a verb.
func argument(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func runLost(ctx context.Context, o lostOptions, stdout, stderr io.Writer) error {
	return ask(ctx, o.state, o.target, func(src source, rel string) error {
		if o.export != "" {
			return runExport(ctx, src, rel, o, stdout, stderr)
		}
		if o.pending {
			list, err := src.Pending(ctx, rel)
			if err != nil {
				return err
			}
			if err := caution(ctx, src, false, stderr); err != nil {
				return err
			}
			return printPending(list, o.json, stdout, stderr)
		}
		each := func(row func(ledger.Row) error) error {
			n := 0
			err := src.EachLost(ctx, control.LostQuery{Path: rel, All: o.all}, func(r ledger.Row) error {
				if n++; n == 1 {
					if err := caution(ctx, src, false, stderr); err != nil {
						return err
					}
				}
				return row(r)
			})
			if err == nil && n == 0 {
				err = caution(ctx, src, true, stderr)
			}
			return err
		}
		if o.format == "mapfile" {
			return printMapfile(ctx, src, rel, each, stdout)
		}
		return printLost(each, o.json, stdout, stderr)
	})
}

// eachRow hands over rows, one by one: all that are lost may not fit into memory.
type eachRow func(row func(ledger.Row) error) error

// caution says what the answer does not tell.
func caution(ctx context.Context, src source, nothing bool, stderr io.Writer) error {
	if off, ok := src.(*mount.Offline); ok && !off.KnowsNames() {
		fmt.Fprintln(stderr, "mendfs lost: the backing directory is not there, or covered: names are those when last seen")
	}
	if !nothing {
		return nil
	}
	s, err := src.Status(ctx)
	if err == nil && s.Semantics == "strict" {
		fmt.Fprintf(stderr, "mendfs lost: the mount is strict: it gives errors instead of giving bytes up; poison that it met is in 'mendfs events %s'\n", targetOf(s))
	}
	return err
}

func printLost(each eachRow, asJSON bool, stdout, stderr io.Writer) error {
	print := lostTable
	if asJSON {
		print = lostJSON
	}
	n, code := 0, outcome(exitClean)
	err := print(stdout, func(row func(ledger.Row) error) error {
		return each(func(r ledger.Row) error {
			n++
			code.add(r)
			return row(r)
		})
	})
	if err != nil {
		return err
	}
	if n == 0 && !asJSON {
		fmt.Fprintln(stderr, "nothing is lost")
	}
	return code.orNil()
}

// lostJSON is printJSON for rows as they come.
func lostJSON(stdout io.Writer, each eachRow) error {
	out, between := bufio.NewWriter(stdout), `{"version":1,"lost":[`
	err := each(func(r ledger.Row) error {
		text, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		if _, err := out.WriteString(between); err != nil {
			return err
		}
		between = ","
		_, err = out.Write(text)
		return err
	})
	if err != nil {
		return errors.Join(err, out.Flush())
	}
	if between == "," {
		between = ""
	}
	if _, err := out.WriteString(between + "]}\n"); err != nil {
		return err
	}
	return out.Flush()
}

// lostTable prints rows in aligned columns, so many at a time.
func lostTable(stdout io.Writer, each eachRow) error {
	const atATime = 1000
	table := [][]string{{"RANGE", "STATE", "SINCE", "CAUSE", "SOURCE", "PATH"}}
	any := false
	err := each(func(r ledger.Row) error {
		any = true
		table = append(table, []string{
			r.Range.String(), string(r.State), r.Changed.UTC().Format(time.RFC3339), r.Cause, r.Source, quote(r.Path),
		})
		if len(table) < atATime {
			return nil
		}
		err := printTable(stdout, table)
		table = table[:0]
		return err
	})
	if !any {
		return err
	}
	return errors.Join(err, printTable(stdout, table))
}

// add adds what a row says to the exit code: loss that is repaired, loss that is left.
func (code *outcome) add(r ledger.Row) {
	switch r.State {
	case ledger.Lost:
		*code |= exitLossLeft
	default:
		*code |= exitRepaired
	}
}

// orNil is no error for a clean exit.
func (code outcome) orNil() error {
	if code == exitClean {
		return nil
	}
	return code
}

// list is items as it goes into JSON: [] instead of null.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
