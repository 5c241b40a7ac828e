package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
)

type eventsOptions struct {
	follow, json         bool
	since, state, target string
}

func newEvents() *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events [--follow] [--since T] MOUNTPOINT [--state DIR]",
		Short: "print what happened",
		Long: `events prints the event log of a mount, oldest first; with --json as JSON Lines.
Lines with the same id tell of the same event, the last one is the newest.
--follow goes on until the mount ends or you interrupt it. With --state the answer
comes from a state directory, also when nothing is mounted.

Exit status: 0 printed (also when interrupted in --follow), 8 it did not work, 16 wrong usage.`,
		Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.target = argument(args); o.target != "" && o.state != "" {
				return &usageError{"MOUNTPOINT and --state exclude each other", "give one of them"}
			}
			return runEvents(cmd.Context(), o, time.Now(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.follow, "follow", false, "go on with events as they happen")
	f.StringVar(&o.since, "since", "", "leave out what is older than `T`: 2026-11-21T03:04:05Z, or 15m, 2h ago")
	addState(f, &o.state)
	f.BoolVar(&o.json, "json", false, "print JSON Lines")
	return cmd
}

func runEvents(ctx context.Context, o eventsOptions, now time.Time, stdout io.Writer) error {
	query := control.EventQuery{Follow: o.follow}
	if o.since != "" {
		since, err := ParseSince(o.since, now)
		if err != nil {
			return &usageError{err.Error(), "correct --since"}
		}
		query.Since = since
	}
	return ask(ctx, o.state, o.target, func(src source, _ string) error {
		if o.json {
			return src.Events(ctx, query, func(line []byte) error {
				_, err := fmt.Fprintf(stdout, "%s\n", line)
				return err
			})
		}
		status, err := src.Status(ctx)
		if err != nil {
			return err
		}
		return src.Events(ctx, query, func(line []byte) error { return printEvent(stdout, line, status) })
	})
}

// printEvent prints a line of the event log for people. The log names files
// relative to the root of the mount; what is printed can be run as it is.
func printEvent(w io.Writer, line []byte, of control.Status) error {
	var e event.Event
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("reading the event log: %w", err)
	}
	e.Next = runnable(e, of)
	_, err := io.WriteString(w, event.Line(e))
	return err
}

// runnable is what to do next about the event, with the whole path of its file
// if it is to be asked of mendfs lost.
func runnable(e event.Event, of control.Status) string {
	if !strings.HasPrefix(e.Next, "mendfs lost") {
		return e.Next
	}
	verb := "mendfs lost"
	for _, flag := range []string{"--all", "--pending"} {
		if strings.HasPrefix(e.Next, verb+" "+flag) {
			verb += " " + flag
		}
	}
	switch path := e.Path; {
	case path == "" || quote(path) != path || filepath.IsAbs(path): // no name that a shell takes as it is printed, or none in the mount
		return verb + " " + targetOf(of)
	case of.Running:
		return verb + " " + shellWord(filepath.Join(of.Mountpoint, path))
	case path[0] == '-': // no flag
		return verb + " " + targetOf(of) + " " + shellWord("./"+path)
	default:
		return verb + " " + targetOf(of) + " " + shellWord(path)
	}
}
