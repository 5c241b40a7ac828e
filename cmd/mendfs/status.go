package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery"
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
		Long: `status describes one mount, or all mounts of this machine that are yours; for root all,
dead ones too. With --state it describes a state directory, also when nothing is mounted.

Exit status: 0 answered, 8 it did not work or a mount is dead, 16 wrong usage.`,
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
	all, others, err := statuses(ctx, o)
	if others > 0 {
		fmt.Fprintf(stderr, "%s of mendfs by other users: ask them, or root\n", count(others, "mount"))
	}
	switch {
	case o.json:
		return errors.Join(err, printJSON(stdout, "status", list(all)))
	case err == nil && len(all) == 0 && others == 0:
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

// statuses is what is asked for, and the number of mounts that this user can't
// ask. Where a mount is dead, the error is at least the exit code that says so.
func statuses(ctx context.Context, o statusOptions) (all []control.Status, others int, err error) {
	if o.target != "" {
		running, err := mount.Find(o.target)
		if err != nil {
			return nil, 0, orState(err)
		}
		s, err := statusOf(ctx, *running)
		if err != nil {
			return nil, 0, err
		}
		return []control.Status{s}, 0, nil
	}
	if o.state != "" {
		err := ask(ctx, o.state, "", func(src source, _ string) error {
			ctx, cancel := context.WithTimeout(ctx, statusTime)
			defer cancel()
			s, err := src.Status(ctx)
			all = append(all, s)
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		return all, 0, nil
	}
	return surveyed(ctx)
}

// surveyed is the statuses of all mounts in sight.
func surveyed(ctx context.Context) (all []control.Status, others int, err error) {
	seen, err := mount.Survey()
	dead := false
	for _, m := range seen {
		if me := os.Geteuid(); me != 0 && m.Owner != me {
			others++
			continue
		}
		s := control.Status{Running: !m.Dead, Dead: m.Dead, Mountpoint: m.Mountpoint, Backing: m.Backing, Owner: &m.Owner}
		dead = dead || m.Dead
		if m.Listed {
			var failed error
			if s, failed = statusOf(ctx, m.Running); failed != nil {
				err = errors.Join(err, fmt.Errorf("%s (pid %d): %w", quote(m.Mountpoint), m.Pid, failed))
				continue
			}
		}
		all = append(all, s)
	}
	if err == nil && dead {
		err = outcome(exitOperational)
	}
	return all, others, err
}

func printStatus(w io.Writer, s control.Status) error {
	if err := printTrouble(w, s); err != nil {
		return err
	}
	title := s.Mountpoint
	if !s.Running && !s.Dead {
		title = s.State
	}
	if _, err := fmt.Fprintln(w, quote(title)); err != nil {
		return err
	}
	rows := [][]string{
		{"  running", runningText(s)},
		{"  backing", quote(s.Backing)},
	}
	if s.State == "" { // dead, or not to be asked
		return printTable(w, rows)
	}
	rows = append(rows, []string{"  filesystem", s.FS}, []string{"  state", quote(s.State)})
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
		if _, err := fmt.Fprintf(w, "TROUBLE: %s\n", control.Printable(strings.ReplaceAll(text, "\n", "; "))); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "TROUBLE: next: make room on the disk of %s, or mend it (df, dmesg); until then new loss may be in memory only, and repairs may fail\n", quote(s.State))
	return err
}

func runningText(s control.Status) string {
	by := ""
	if s.Owner != nil && *s.Owner != os.Geteuid() {
		by = fmt.Sprintf(", by user %d", *s.Owner)
	}
	switch {
	case s.Dead:
		return "dead" + by + ": umount it ('mendfs umount " + shellWord(s.Mountpoint) + "') or mount again"
	case !s.Running:
		return "no"
	case s.State == "":
		return "yes" + by + ": in no list of running mounts that can be found; ask that user"
	}
	return fmt.Sprintf("pid %d since %s%s", s.Pid, s.Started.UTC().Format(time.RFC3339), by)
}

func semanticsText(s control.Status) string {
	words := []string{s.Semantics}
	if s.Simulate != "" {
		words = append(words, "simulated poison, profile "+s.Simulate)
	}
	if s.OverMounted {
		words = append(words, "over-mounted")
	}
	if s.Repair == "eager" {
		words = append(words, "repair eager")
	}
	if s.ReadOnly {
		words = append(words, "read-only")
	}
	if s.ReadOnlyNow {
		words = append(words, "read-only by a remount")
	}
	if s.BackingReadOnly && !s.ReadOnly {
		words = append(words, "read-only below")
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
	if pages, ok := fields["breaker_pages"].(float64); ok && pages != recovery.DefaultBreaker {
		rows = append(rows, []string{"  breaker", fmt.Sprintf("%.0f pages", pages)})
	}
	for _, c := range counters {
		if n, ok := fields[c.name].(float64); ok {
			rows = append(rows, []string{"  " + c.label, fmt.Sprintf("%.0f %s", n, c.since)})
		}
	}
	if now, ok := fields["outage"].(bool); ok && now {
		rows = append(rows, []string{"  outage", "within the last minute: programs get its errors; see mendfs events, and dmesg"})
	}
	if open, ok := fields["breaker_open"].(bool); ok && open {
		rows = append(rows, []string{"  too many failures", "at once: errors are passed to programs until it is quiet"})
	}
	return rows
}
