package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/cmd/mendfs/doctor"
	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor BACKING",
		Short: "what this kernel, filesystem and user can and cannot do, before mounting",
		Long: `doctor looks at a directory that is to be protected, and changes nothing. What can be
tried is tried, on files that never have a name. Each line says ok, limited, no or
unknown, what was found, and what to do about it.

Exit status: 0 it can be mounted, 8 it can't, 16 wrong usage.`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDoctor(cmd.Context(), args[0], asJSON, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runDoctor(ctx context.Context, backing string, asJSON bool, stdout io.Writer) error {
	findings, err := doctor.Examine(backing, func(path string) doctor.State { return stateOf(ctx, path) })
	if err != nil {
		return notExamined(backing, err)
	}
	if asJSON {
		err = printJSON(stdout, "doctor", findings)
	} else {
		err = printFindings(stdout, findings)
	}
	if err == nil && doctor.Stops(findings) {
		return outcome(exitOperational)
	}
	return err
}

func notExamined(backing string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &usageError{"there is no directory " + quote(backing), "create it, or check the spelling"}
	case errors.Is(err, unix.ENOTDIR):
		return &usageError{quote(backing) + " is not a directory", "name the directory that is to be mounted"}
	case errors.Is(err, unix.ENOTCONN):
		return &failure{fmt.Errorf("%s lies in a dead mount: %w", quote(backing), err), "take it away with 'mendfs umount'"}
	}
	return &failure{err, "ask as a user who may enter it"}
}

func printFindings(w io.Writer, findings []doctor.Finding) error {
	for _, f := range findings {
		if _, err := fmt.Fprintf(w, "%-8s %-13s %s\n", f.Verdict, f.Check, control.Printable(f.Found)); err != nil {
			return err
		}
		if f.Next == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%22s next: %s\n", "", control.Printable(f.Next)); err != nil {
			return err
		}
	}
	return nil
}

// stateOf looks for a mount of the backing directory, running or not, among
// the state directories with default names. One that was named with --state
// is seen only while its mount runs.
func stateOf(ctx context.Context, backing string) doctor.State {
	none := doctor.State{Home: stateHome()}
	running, err := mount.List()
	if err != nil {
		none.Err = err
		return none
	}
	for _, r := range running {
		if r.Backing == backing {
			return doctor.State{Dir: r.State, Running: r.Mountpoint}
		}
	}
	dirs, err := filepath.Glob(filepath.Join(stateHome(), "*", "meta.json"))
	if err != nil {
		none.Err = err
		return none
	}
	for _, meta := range dirs {
		if state, found := readState(ctx, filepath.Dir(meta), backing); found {
			return state
		}
	}
	return none
}

// readState reads the state directory dir if it is the one of the backing.
func readState(ctx context.Context, dir, backing string) (doctor.State, bool) {
	offline, err := mount.OpenState(dir)
	if err != nil {
		return doctor.State{}, false // not to be told whose it is; mounting says what is wrong
	}
	status, err := offline.Status(ctx)
	err = errors.Join(err, offline.Close())
	return doctor.State{Dir: dir, OpenIntents: status.OpenIntents, Err: err}, status.Backing == backing
}

// stateHome is where state directories with default names lie.
func stateHome() string {
	if os.Geteuid() == 0 {
		return "/var/lib/mendfs"
	}
	if home := os.Getenv("XDG_STATE_HOME"); home != "" {
		return filepath.Join(home, "mendfs")
	}
	return filepath.Join(os.Getenv("HOME"), ".local/state/mendfs")
}
