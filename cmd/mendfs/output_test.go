package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s (go test -update writes it anew)\ngot:\n%swant:\n%s", path, got, want)
	}
}

func TestQuote(t *testing.T) {
	for name, want := range map[string]string{
		"base/16384/2619": "base/16384/2619",
		"with spaces, ü":  "with spaces, ü",
		`it's "fine"`:     `it's "fine"`,
		`"quoted"`:        `"\"quoted\""`,
		"":                `""`,
		"a\nb":            `"a\nb"`,
		"\x1b[31mred":     `"\x1b[31mred"`,
		"not\xffutf8":     `"not\xffutf8"`,
		"left\u202eright": `"left\u202eright"`,
	} {
		if got := quote(name); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func exampleRows() []ledger.Row {
	return []ledger.Row{
		{
			ID: 1, File: fileid.ID{Ino: 1311}, Path: "base/16384/2619", Range: ranges.Range{Off: 81920, Len: 64},
			State: ledger.Lost, Cause: "eio", Source: "kernel", Granularity: 64, First: noon, Changed: noon,
		},
		{
			ID: 2, File: fileid.ID{Ino: 1312}, Path: "name\nwith newline", Range: ranges.Range{Off: 0, Len: 1 << 30},
			State: ledger.Reinitialized, Cause: "short-read", Source: "simulated", Granularity: 512, First: noon, Changed: noon.Add(time.Hour),
		},
	}
}

func TestOutput(t *testing.T) {
	rows := exampleRows()
	pending := []control.Pending{
		{ID: 7, Path: "a", Range: ranges.Page(4096), Size: 5000, Time: noon, Why: control.UnderWay, Next: "wait", Image: make([]byte, 4096), Missing: []ranges.Range{{Off: 4160, Len: 64}}},
		{ID: 8, Path: "b", Range: ranges.Range{Off: 0, Len: 8192}, Size: 8192, Time: noon, Why: control.UnderWay, Next: "wait"},
		{Path: "c\n", Range: ranges.Page(0), Kept: true, Why: control.Refused, Next: "write the page", Image: make([]byte, 4096)},
	}
	running := control.Status{
		Running: true, Mountpoint: "/srv/db", Backing: "/srv/db", OverMounted: true, State: "/var/lib/mendfs/db-1a2b3c4d", FS: "uuid",
		Pid: 42, Started: noon, Semantics: "recover", Simulate: "dax", Lost: control.Count{Ranges: 1, Bytes: 64},
		Reinitialized: control.Count{Ranges: 2, Bytes: 1024}, OpenIntents: 1, Sandbox: &control.Sandbox{Capabilities: []string{"chown", "sys_admin"}, NoNewPrivs: true, Landlock: 7}, Engine: map[string]any{"recovered_reads": 3.0, "lost_bytes": 1088.0, "repaired_pages": 0.0, "breaker_open": true},
	}
	troubled := control.Status{
		Running: true, Mountpoint: "/srv/db", Backing: "/srv/db", State: "/var/lib/mendfs/db-1a2b3c4d", FS: "uuid", Pid: 42, Started: noon,
		Semantics: "recover", Trouble: []string{"writing the ledger: no space left on device", "writing events\nread-only file system"},
	}
	stopped := control.Status{Backing: "/srv/db", State: "/var/lib/mendfs/db-1a2b3c4d", FS: "uuid", OpenIntents: 2, KeptImages: 1}
	uid := uint32(999)
	line, err := json.Marshal(event.Event{
		Version: 1, ID: "01J", Time: noon, Event: event.Lost, Path: "base/16384/2619", Offset: 81920, Length: 64, Source: "kernel",
		Detected: "eio", Salvaged: 4032, Pid: 4242, UID: &uid, Comm: "postgres", Action: "zero-filled", Count: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, print := range map[string]func(w io.Writer) error{
		"lost.txt":           func(w io.Writer) error { return printLost(eachOf(rows), false, w, w) },
		"lost.json":          func(w io.Writer) error { return printLost(eachOf(rows), true, w, w) },
		"lost-none.txt":      func(w io.Writer) error { return printLost(eachOf(nil), false, w, w) },
		"lost-none.json":     func(w io.Writer) error { return printLost(eachOf(nil), true, w, w) },
		"pending.txt":        func(w io.Writer) error { return printPending(pending, false, w, w) },
		"status.txt":         func(w io.Writer) error { return printStatus(w, running) },
		"status-off.txt":     func(w io.Writer) error { return printStatus(w, stopped) },
		"status-trouble.txt": func(w io.Writer) error { return printStatus(w, troubled) },
		"inject.txt": func(w io.Writer) error {
			return printTable(w, injectionTable([]control.Injection{{ID: "1", Path: "a", Range: ranges.Range{Off: 64, Len: 64}}, {ID: "2", Path: "b", Range: ranges.Range{Off: 0, Len: 4096}, Latent: true}, {ID: "3", PathB64: []byte("\xff bad"), Range: ranges.Range{Off: 0, Len: 1}}}))
		},
		"events.txt": func(w io.Writer) error { return printEvent(w, line, running) },
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			var answer outcome
			if err := print(&out); err != nil && !errors.As(err, &answer) {
				t.Fatal(err)
			}
			golden(t, name, out.Bytes())
		})
	}
}

func TestRunnable(t *testing.T) {
	at := control.Status{Running: true, Mountpoint: "/srv/my db", State: "/state"}
	stopped := control.Status{Backing: "/srv/db", State: "/state"}
	for name, c := range map[string]struct {
		of               control.Status
		path, next, want string
	}{
		"a file":                 {at, "log", "mendfs lost log", "mendfs lost '/srv/my db/log'"},
		"a name to quote":        {at, "it's", `mendfs lost 'it'\''s'`, `mendfs lost '/srv/my db/it'\''s'`},
		"with history":           {at, "a/b", "mendfs lost --all a/b", "mendfs lost --all '/srv/my db/a/b'"},
		"no file":                {at, "", "mendfs lost --pending", "mendfs lost --pending '/srv/my db'"},
		"a name not to print":    {at, "a\x1bb", "mendfs lost MOUNTPOINT", "mendfs lost '/srv/my db'"},
		"nothing is mounted":     {stopped, "log", "mendfs lost log", "mendfs lost --state /state log"},
		"stopped, like a flag":   {stopped, "-x", "mendfs lost ./-x", "mendfs lost --state /state ./-x"},
		"moved out of the mount": {at, "/elsewhere", "mendfs lost /elsewhere", "mendfs lost '/srv/my db'"},
		"something else":         {at, "log", "see the kernel's log", "see the kernel's log"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := runnable(event.Event{Path: c.path, Next: c.next}, c.of); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// eachOf hands over these rows.
func eachOf(rows []ledger.Row) eachRow {
	return func(row func(ledger.Row) error) error {
		for _, r := range rows {
			if err := row(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestLongTable: more rows than are aligned at a time are all there, below one heading.
func TestLongTable(t *testing.T) {
	var out bytes.Buffer
	if err := printLost(eachOf(make([]ledger.Row, 2500)), false, &out, io.Discard); exitCode(err) != int(exitRepaired) {
		t.Error(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 2501 || strings.Count(out.String(), "RANGE") != 1 {
		t.Errorf("%d lines", lines)
	}
}

func TestLossOutcome(t *testing.T) {
	for name, c := range map[string]struct {
		states []ledger.State
		want   int
	}{
		"nothing":        {nil, 0},
		"reinitialized":  {[]ledger.State{ledger.Reinitialized}, 1},
		"history":        {[]ledger.State{ledger.Overwritten, ledger.Healed}, 1},
		"lost":           {[]ledger.State{ledger.Lost, ledger.Lost}, 4},
		"both, added up": {[]ledger.State{ledger.Lost, ledger.Reinitialized}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			var rows []ledger.Row
			for _, s := range c.states {
				rows = append(rows, ledger.Row{State: s})
			}
			if got := exitCode(printLost(eachOf(rows), true, io.Discard, io.Discard)); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestExitCode(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"success":            {nil, 0},
		"outcome":            {outcome(5), 5},
		"unknown trouble":    {io.ErrUnexpectedEOF, 8},
		"mount: operational": {fmt.Errorf("wrapped: %w", &mount.Error{Exit: 8}), 8},
		"mount: usage":       {&mount.Error{Exit: 16}, 16},
		"usage":              {&usageError{}, 16},
		"failure":            {&failure{err: io.EOF}, 8},
		"interrupted":        {fmt.Errorf("asking: %w", context.Canceled), 32},
	} {
		t.Run(name, func(t *testing.T) {
			if got := exitCode(c.err); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}
