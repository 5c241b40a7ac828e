package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Result is what became of a program.
type Result struct {
	Exit           int // -1: ended by a signal
	Stdout, Stderr string
}

// Mendfs runs a verb.
func Mendfs(t testing.TB, args ...string) Result {
	t.Helper()
	return Run(t, os.Getenv(mendfsBin), args...)
}

// Run runs a program to its end, which has to come within a minute.
func Run(t testing.TB, program string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return collect(ctx, t, exec.CommandContext(ctx, program, args...))
}

func collect(ctx context.Context, t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: %v %v: %s", cmd, err, ctx.Err(), stderr.String())
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Sh runs a shell script with its directory in the mount and the arguments as
// $1 and on. It must succeed; its standard output is returned.
func (m *Mount) Sh(script string, args ...string) string {
	m.t.Helper()
	r := m.TrySh(script, args...)
	if r.Exit != 0 {
		m.t.Fatalf("%s: exit %d: %s%s", script, r.Exit, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TrySh is Sh for scripts that may fail.
func (m *Mount) TrySh(script string, args ...string) Result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-euo", "pipefail", "-c", script, "sh"}, args...)...)
	cmd.Dir = m.At
	return collect(ctx, m.t, cmd)
}

// Inject puts known poison under a file.
func (m *Mount) Inject(rel string, rs ...ranges.Range) { m.t.Helper(); m.inject(rel, rs) }

// InjectLatent puts poison under a file that nobody knows of.
func (m *Mount) InjectLatent(rel string, rs ...ranges.Range) {
	m.t.Helper()
	m.inject(rel, rs, "--latent")
}

func (m *Mount) inject(rel string, rs []ranges.Range, flags ...string) {
	m.t.Helper()
	args := append([]string{"inject", "--on-real-files", m.Path(rel)}, flags...)
	for _, r := range rs {
		args = append(args, "--range", fmt.Sprintf("%d+%d", r.Off, r.Len))
	}
	if r := Mendfs(m.t, args...); r.Exit != 0 {
		m.t.Fatalf("mendfs inject: exit %d: %s", r.Exit, r.Stderr)
	}
}

// Poison is the injected poison that is left under a file.
func (m *Mount) Poison(rel string) *ranges.Set {
	m.t.Helper()
	var list []control.Injection
	m.ask(&list, "injections", []int{0}, "inject", "--list", "--json", m.At)
	left := ranges.Of()
	for _, i := range list {
		if i.File.Ino == inode(m.t, m.Path(rel)) {
			for _, r := range i.Remaining {
				left.Add(r)
			}
		}
	}
	return left
}

// Lost is the rows of the ledger for a path in the mount whose content is
// gone: states lost and reinitialized.
func (m *Mount) Lost(rel string) []ledger.Row {
	m.t.Helper()
	return m.rows("lost", "--json", m.Path(rel))
}

// History is all rows for a path.
func (m *Mount) History(rel string) []ledger.Row {
	m.t.Helper()
	return m.rows("lost", "--all", "--json", m.Path(rel))
}

func (m *Mount) rows(args ...string) []ledger.Row {
	m.t.Helper()
	var rows []ledger.Row
	code := m.ask(&rows, "lost", []int{0, 1, 4, 5}, args...)
	want := 0
	for _, r := range rows {
		if r.State == ledger.Lost {
			want |= 4
		} else {
			want |= 1
		}
	}
	if code != want {
		m.t.Errorf("mendfs %v ended with %d, and its rows mean %d", args, code, want)
	}
	return rows
}

// Status is the mount's account of itself.
func (m *Mount) Status() control.Status {
	m.t.Helper()
	var all []control.Status
	m.ask(&all, "status", []int{0}, "status", "--json", m.At)
	if len(all) != 1 {
		m.t.Fatalf("mendfs status %s: %d answers", m.At, len(all))
	}
	return all[0]
}

// Events is the events so far, in the last version of each.
func (m *Mount) Events() []event.Event {
	m.t.Helper()
	r := Mendfs(m.t, "events", "--json", m.At)
	if r.Exit != 0 {
		m.t.Fatalf("mendfs events: exit %d: %s", r.Exit, r.Stderr)
	}
	return ParseEvents(m.t, r.Stdout)
}

// ParseEvents reads JSON Lines of events; of lines with one id the last counts.
func ParseEvents(t testing.TB, text string) []event.Event {
	t.Helper()
	var all []event.Event
	at := map[string]int{}
	for line := range bytes.Lines([]byte(text)) {
		var e event.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v in event %q", err, line)
		}
		if i, ok := at[e.ID]; ok {
			all[i] = e
			continue
		}
		at[e.ID] = len(all)
		all = append(all, e)
	}
	return all
}

// ask runs a verb that prints {"version":1,"<noun>":[...]}.
func (m *Mount) ask(list any, noun string, codes []int, args ...string) int {
	m.t.Helper()
	r := Mendfs(m.t, args...)
	var answer struct {
		Version int `json:"version"`
	}
	fields := map[string]json.RawMessage{}
	err := errors.Join(json.Unmarshal([]byte(r.Stdout), &answer), json.Unmarshal([]byte(r.Stdout), &fields))
	if err == nil {
		err = json.Unmarshal(fields[noun], list)
	}
	if err != nil || answer.Version != 1 {
		m.t.Fatalf("mendfs %v: exit %d, %v, version %d: %s%s", args, r.Exit, err, answer.Version, r.Stdout, r.Stderr)
	}
	for _, code := range codes {
		if r.Exit == code {
			return r.Exit
		}
	}
	m.t.Fatalf("mendfs %v: exit %d: %s", args, r.Exit, r.Stderr)
	return -1
}
