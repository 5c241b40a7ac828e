package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
)

type injectOptions struct {
	target string
	ranges []string
	random int
	seed   uint64
	seeded bool
	drawn  bool // --random was given
	latent bool
	keep   bool
	real   bool
	list   bool
	remove string
	clear  bool
	json   bool
}

func newInject() *cobra.Command {
	var o injectOptions
	cmd := &cobra.Command{
		Use:   "inject FILE --range OFF+LEN... | DIR --random N --seed S | --list|--remove ID|--clear MOUNTPOINT",
		Short: "poison files of a simulated mount",
		Long: `inject puts simulated poison under files of a mount that was made with --simulate.
Overwriting it really changes the backing files, so on a directory that was not empty
when it was first mounted --on-real-files is needed too.

OFF and LEN are bytes, or k, M, G. The same --seed gives the same poison.

Exit status: 0 done, 8 it did not work, 16 wrong usage.`,
		Example: `  mendfs inject /tmp/mnt/file --range 80k+64
  mendfs inject /tmp/mnt --random 100 --seed 1
  mendfs inject --list /tmp/mnt`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target, o.seeded, o.drawn = args[0], cmd.Flags().Changed("seed"), cmd.Flags().Changed("random")
			return runInject(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.ranges, "range", nil, "poison `OFF+LEN`; may be repeated")
	f.IntVar(&o.random, "random", 0, "poison `N` places chosen by --seed in the files below DIR")
	f.Uint64Var(&o.seed, "seed", 0, "seed `S` of --random")
	f.BoolVar(&o.latent, "latent", false, "poison that nobody knows of yet")
	f.BoolVar(&o.keep, "keep-cache", false, "leave the page cache as it is, as hardware does")
	f.BoolVar(&o.real, "on-real-files", false, "the directory was not empty at first, and that is all right")
	f.BoolVar(&o.list, "list", false, "list the poison injected")
	f.StringVar(&o.remove, "remove", "", "take the injection `ID` back")
	f.BoolVar(&o.clear, "clear", false, "take all injections back")
	f.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// injectVerb is what inject was asked to do; exactly one thing.
type injectVerb func(ctx context.Context, c *control.Client, rel string) ([]control.Injection, error)

// takenBack says on standard error what --remove or --clear did.
func (o injectOptions) takenBack(n int, stderr io.Writer) {
	switch {
	case o.remove != "":
		fmt.Fprintf(stderr, "injection %s is taken back: what lies below shows again\n", o.remove)
	case n == 0:
		fmt.Fprintln(stderr, "no poison was injected")
	default:
		fmt.Fprintf(stderr, "%s taken back: what lies below shows again\n", count(n, "injection"))
	}
}

func runInject(ctx context.Context, o injectOptions, stdout, stderr io.Writer) error {
	do, err := o.plan()
	if err != nil {
		return err
	}
	running, err := mount.Find(o.target)
	if err != nil {
		return err
	}
	done, err := do(ctx, running.Dial(), running.Rel)
	if err != nil {
		return err
	}
	switch {
	case o.remove != "" || o.clear:
		o.takenBack(len(done), stderr)
		if o.json {
			return printJSON(stdout, "injections", []control.Injection{}) // what is injected: nothing new
		}
		return nil
	case o.json:
		return printJSON(stdout, "injections", list(done))
	case o.list && len(done) == 0:
		fmt.Fprintln(stderr, "no poison is injected")
		return nil
	}
	return printTable(stdout, injectionTable(done))
}

// plan checks the flags against each other and turns them into the one thing
// to do.
func (o injectOptions) plan() (injectVerb, error) {
	modes := 0
	for _, given := range []bool{len(o.ranges) > 0, o.random != 0 || o.drawn, o.list, o.remove != "", o.clear} {
		if given {
			modes++
		}
	}
	switch {
	case modes != 1:
		return nil, &usageError{"inject does exactly one of --range, --random, --list, --remove and --clear", "give one of them"}
	case o.drawn && o.random < 1:
		return nil, &usageError{fmt.Sprintf("--random %d is no number of places", o.random), "give 1 or more"}
	case o.random > 0 && !o.seeded:
		return nil, &usageError{"--random needs --seed", "give a number, the same one for the same poison"}
	case o.random == 0 && o.seeded:
		return nil, &usageError{"--seed goes with --random", "leave it out"}
	case len(o.ranges) == 0 && o.random == 0 && (o.latent || o.keep || o.real):
		return nil, &usageError{"--latent, --keep-cache and --on-real-files go with --range or --random", "leave them out"}
	}
	switch {
	case o.list:
		return func(ctx context.Context, c *control.Client, _ string) ([]control.Injection, error) {
			return c.Injections(ctx)
		}, nil
	case o.remove != "":
		return func(ctx context.Context, c *control.Client, _ string) ([]control.Injection, error) {
			return nil, c.RemoveInjection(ctx, o.remove)
		}, nil
	case o.clear:
		return func(ctx context.Context, c *control.Client, _ string) ([]control.Injection, error) {
			all, err := c.Injections(ctx) // for their number
			if err != nil {
				return nil, err
			}
			return all, c.ClearInjections(ctx)
		}, nil
	}
	return o.poison()
}

// poison is the plan of --range and --random.
func (o injectOptions) poison() (injectVerb, error) {
	request := control.InjectRequest{
		Random: o.random, Seed: o.seed, Latent: o.latent, KeepCache: o.keep, OnRealFiles: o.real,
	}
	for _, text := range o.ranges {
		r, err := ParseRange(text)
		if err != nil {
			return nil, &usageError{err.Error(), "give OFF+LEN in bytes, k, M or G"}
		}
		request.Ranges = append(request.Ranges, r)
	}
	return func(ctx context.Context, c *control.Client, rel string) ([]control.Injection, error) {
		request.Path = rel
		return c.Inject(ctx, request)
	}, nil
}

func injectionTable(injections []control.Injection) [][]string {
	table := [][]string{{"ID", "RANGE", "KIND", "PATH"}}
	for _, i := range injections {
		kind := "known"
		if i.Latent {
			kind = "latent"
		}
		table = append(table, []string{i.ID, i.Range.String(), kind, quote(i.Name())})
	}
	return table
}
