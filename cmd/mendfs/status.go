package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
)

type statusOptions struct {
	state, target string
	json          bool
}

func newStatus() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status [MOUNTPOINT] [--state DIR]",
		Short: "what is mounted, how, and what is known of its poison",
		Long: `status describes one mount, or all running mounts of this machine that you may ask.
With --state it describes a state directory, also when nothing is mounted.

Exit status: 0 answered, 8 it did not work, 16 wrong usage.`,
		Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.target = argument(args); o.target != "" && o.state != "" {
				return &usageError{"MOUNTPOINT and --state exclude each other", "give one of them"}
			}
			return runStatus(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	addState(cmd.Flags(), &o.state)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// runStatus prints what answered even if some mount did not.
func runStatus(ctx context.Context, o statusOptions, stdout, stderr io.Writer) error {
	all, err := statuses(ctx, o)
	switch {
	case o.json:
		return errors.Join(err, printJSON(stdout, "status", list(all)))
	case err == nil && len(all) == 0:
		fmt.Fprintln(stderr, "no mendfs mount is running")
		return nil
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		if failed := printStatus(stdout, s); failed != nil {
			return failed
		}
	}
	return err
}

func statuses(ctx context.Context, o statusOptions) ([]control.Status, error) {
	var all []control.Status
	if o.target != "" || o.state != "" {
		err := ask(ctx, o.state, o.target, func(src source, _ string) error {
			s, err := src.Status(ctx)
			all = append(all, s)
			return err
		})
		if err != nil {
			return nil, err
		}
		return all, nil
	}
	running, err := mount.List()
	for _, r := range running {
		s, failed := control.Dial(r.State).Status(ctx)
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%s (pid %d): %w", quote(r.Mountpoint), r.Pid, failed))
			continue
		}
		all = append(all, s)
	}
	return all, err
}

func printStatus(w io.Writer, s control.Status) error {
	if err := printTrouble(w, s); err != nil {
		return err
	}
	title := s.Mountpoint
	if !s.Running {
		title = s.State
	}
	if _, err := fmt.Fprintln(w, quote(title)); err != nil {
		return err
	}
	rows := [][]string{
		{"  running", runningText(s)},
		{"  backing", quote(s.Backing)},
		{"  filesystem", s.FS},
		{"  state", quote(s.State)},
	}
	if s.Running {
		rows = append(rows, []string{"  semantics", semanticsText(s)})
		rows = append(rows, protectionRows(s.Protection)...)
	}
	if s.Sandbox != nil {
		rows = append(rows, []string{"  sandbox", sandboxText(s.Sandbox)})
	}
	rows = append(rows,
		[]string{"  lost", countText(s.Lost, "the poison is still there")},
		[]string{"  reinitialized", countText(s.Reinitialized, "the media are clean, the bytes are zero")},
		[]string{"  open intents", intentsText(s)},
		[]string{"  images kept", fmt.Sprint(s.KeptImages)},
	)
	return printTable(w, append(rows, engineRows(s.Engine)...))
}

// printTrouble says first, and loudly, that records can't be kept.
func printTrouble(w io.Writer, s control.Status) error {
	if len(s.Trouble) == 0 {
		return nil
	}
	for _, text := range s.Trouble {
		if _, err := fmt.Fprintf(w, "TROUBLE: %s\n", printable(strings.ReplaceAll(text, "\n", "; "))); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "TROUBLE: next: make room on the disk of %s, or mend it (df, dmesg); until then new loss may be in memory only, and repairs may fail\n", quote(s.State))
	return err
}

func runningText(s control.Status) string {
	if !s.Running {
		return "no"
	}
	return fmt.Sprintf("pid %d since %s", s.Pid, s.Started.UTC().Format(time.RFC3339))
}

func semanticsText(s control.Status) string {
	words := []string{s.Semantics}
	if s.Simulate != "" {
		words = append(words, "simulated poison, profile "+s.Simulate)
	}
	if s.OverMounted {
		words = append(words, "over-mounted")
	}
	if s.ReadOnly {
		words = append(words, "read-only")
	}
	return strings.Join(words, ", ")
}

// protectionRows says what is not protected, and by what to change that.
func protectionRows(p *control.Protection) [][]string {
	if p == nil {
		return nil
	}
	text := p.Mode
	if p.Mode != "full" {
		text += fmt.Sprintf(", %s open in passthrough", count(p.Passthrough, "file"))
	}
	if p.Refused > 0 {
		text += fmt.Sprintf(", %s served in full because the kernel refused", count(int(p.Refused), "open"))
	}
	rows := [][]string{{"  protect", text}}
	for _, u := range p.Unprotected {
		how := count(u.Opens, "open") + " from before its poison was known"
		if u.Opens == 0 {
			how = "maybe mapped from before its poison was known"
		}
		rows = append(rows, []string{"  unprotected", fmt.Sprintf("%s: %s; %s", quote(u.Name()), how, u.Next)})
	}
	return rows
}

func sandboxText(s *control.Sandbox) string {
	words := []string{fmt.Sprintf("Landlock %d", s.Landlock)}
	if s.Landlock == 0 {
		words = []string{"no Landlock: " + s.Why}
	}
	if s.NoNewPrivs {
		words = append(words, "no_new_privs")
	}
	capabilities := "no capabilities"
	if len(s.Capabilities) > 0 {
		capabilities = "capabilities " + strings.Join(s.Capabilities, " ")
	}
	return strings.Join(append(words, capabilities), ", ")
}

func countText(c control.Count, meaning string) string {
	if c.Ranges == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%s, %s: %s", count(int(c.Ranges), "range"), count(int(c.Bytes), "byte"), meaning)
}

func intentsText(s control.Status) string {
	if s.OpenIntents > 0 && !s.Running {
		return fmt.Sprintf("%d open: do not use the backing directly before mounting", s.OpenIntents)
	}
	return fmt.Sprint(s.OpenIntents)
}

// counters are the numbers of the engine's account, in words.
var counters = []struct{ name, label, since string }{
	{"known_bad_pages", "known bad pages", "in files that are in use; 4096 bytes each"},
	{"recovered_reads", "reads served", "over poison, since the mount"},
	{"lost_bytes", "bytes lost", "given up since the mount; mendfs lost has all"},
	{"salvaged_bytes", "bytes saved", "out of damaged pages, since the mount"},
	{"repaired_pages", "pages repaired", "since the mount"},
	{"failed_repairs", "repairs failed", "since the mount; see mendfs events"},
	{"outage_errors", "outage errors", "failures that are not poison, since the mount"},
	{"replayed_intents", "repairs finished", "that a crash had interrupted, by this mount"},
}

// engineRows is the engine's own account in words; it came as JSON.
func engineRows(engine any) [][]string {
	fields, ok := engine.(map[string]any)
	if !ok {
		return nil
	}
	var rows [][]string
	if on, ok := fields["verify_writes"].(bool); ok && on {
		rows = append(rows, []string{"  verify writes", "what programs write is read back"})
	}
	for _, c := range counters {
		if n, ok := fields[c.name].(float64); ok {
			rows = append(rows, []string{"  " + c.label, fmt.Sprintf("%.0f %s", n, c.since)})
		}
	}
	if open, ok := fields["breaker_open"].(bool); ok && open {
		rows = append(rows, []string{"  too many failures", "at once: errors are passed to programs until it is quiet"})
	}
	return rows
}
