package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mendfs/mendfs/mount/control"
)

// execute runs one command line and returns its exit code. It says what went
// wrong on stderr, in one line.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var answer outcome
	if err != nil && !errors.As(err, &answer) {
		fmt.Fprintf(stderr, "%s: %v\n", cmd.CommandPath(), oneLine(err))
	}
	return exitCode(err)
}

// oneLine is the text of err as it may be printed: in one line (errors.Join
// makes several), and with a plain word for cancelling.
func oneLine(err error) string {
	return control.Printable(strings.NewReplacer("\n", "; ", context.Canceled.Error(), "interrupted").Replace(err.Error()))
}

func newRoot() *cobra.Command {
	askVersion := false
	root := &cobra.Command{
		Use:   "mendfs VERB [flags] TARGET",
		Short: "read around memory poison, repair by overwriting, keep a ledger of what was lost",
		Long: `mendfs mounts a directory over itself or elsewhere. Reads through the mount never
fail because of poisoned memory: every byte that can be had is right, exactly the
lost ones are zero and in the ledger. Overwriting makes damaged pages usable again.

Exit status, added up: 0 clean, 1 loss that was repaired, 4 loss left,
8 it did not work, 16 wrong usage, 32 interrupted.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              unknownVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if askVersion {
				return runVersion(cmd.OutOrStdout())
			}
			return cmd.Help()
		},
	}
	root.Flags().BoolVar(&askVersion, "version", false, "print the version")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelp())
	root.AddCommand(
		newMount(), newUmount(), newStatus(), newLost(), newEvents(), newInject(),
		newScan(), newDoctor(), newDemo(), newTouch(), newVersion(),
	)
	for _, verb := range root.Commands() {
		verb.DisableFlagsInUseLine = true
	}
	return root
}

// newHelp replaces cobra's, which takes an unknown verb for success.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "what a verb does, and its flags",
		Args:  takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownVerb(cmd, args)
			}
			verb.InitDefaultHelpFlag() // cobra lists --help only once it is there
			return verb.Help()
		},
	}
}

func unknownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if strings.HasPrefix(args[0], "/") { // as mount.fuse runs what it takes for a program of its own kind
		return &usageError{fmt.Sprintf("unknown verb %s: mount(8) found no helper for mendfs", quote(args[0])), "run 'make install' for " + strings.Join(helperNames, " and ") + " in /sbin, or 'mendfs mount BACKING [MOUNTPOINT]'"}
	}
	return &usageError{fmt.Sprintf("unknown verb %q", args[0]), "run 'mendfs --help' for the verbs"}
}

// flagError turns what pflag has to say into one line and the next step.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if words := cmd.Flags().Args(); !cmd.HasParent() && len(words) > 0 {
		return unknownVerb(cmd, words)
	}
	next := fmt.Sprintf("run '%s --help' for the flags", cmd.CommandPath())
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return &usageError{fmt.Sprintf("%q is no value for --%s", invalid.GetValue(), invalid.GetFlag().Name), next}
	}
	return &usageError{err.Error(), next}
}

// takes says how many targets a verb takes, and names them when there are too
// few or too many.
func takes(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return &usageError{"no target is given", "usage: " + cmd.UseLine()}
		case len(args) > most:
			return &usageError{fmt.Sprintf("unexpected argument %s", quote(args[most])), "usage: " + cmd.UseLine()}
		}
		return nil
	}
}
