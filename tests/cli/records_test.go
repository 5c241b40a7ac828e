package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

func TestXattr(t *testing.T) {
	harness.Need(t, harness.Program("getfattr"))
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 8*page)
	if r := m.TrySh(`getfattr -n user.mendfs.lost --only-values f`); r.Exit == 0 {
		t.Errorf("a sound file has the attribute: %q", r.Stdout)
	}
	bad := []rng{{Off: 0, Len: sector}, {Off: 5 * page, Len: 2 * sector}}
	m.Inject("f", bad...)
	m.CheckContent("f", data, bad...)
	text := m.Sh(`getfattr -n user.mendfs.lost --only-values f`)
	for _, r := range bad {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, strings.Trim(string(want), "{}")) {
			t.Errorf("the attribute is %q, and has no %s", text, want)
		}
	}
	if !json.Valid([]byte(text)) {
		t.Errorf("the attribute is no JSON: %q", text)
	}
	if list := m.Sh(`getfattr f`); strings.Contains(list, "mendfs") {
		t.Errorf("the attribute is listed, and backups would copy it: %q", list)
	}
}

// The records answer without a mount, and the same as with one.
func TestVerbsOnAStateDirectory(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 8*page)
	bad := rng{Off: 2 * page, Len: sector}
	m.Inject("f", bad)
	m.Check("f", data, bad)
	with := map[string]harness.Result{}
	for _, verb := range []string{"lost", "events"} {
		with[verb] = harness.Mendfs(t, verb, "--json", m.At)
	}
	m.Stop()
	for verb, want := range with {
		got := harness.Mendfs(t, verb, "--json", "--state", m.State)
		if got.Exit != want.Exit {
			t.Errorf("%s --state: exit %d: %s, want %d", verb, got.Exit, got.Stderr, want.Exit)
		}
		if verb == "lost" && got.Stdout != want.Stdout {
			t.Errorf("lost --state prints %s, with a mount %s", got.Stdout, want.Stdout)
		}
		if verb == "events" && len(harness.ParseEvents(t, got.Stdout)) < len(harness.ParseEvents(t, want.Stdout)) {
			t.Errorf("events --state prints %s, with a mount %s", got.Stdout, want.Stdout)
		}
	}
	r := harness.Mendfs(t, "status", "--json", "--state", m.State)
	if r.Exit != exitOK || !strings.Contains(r.Stdout, `"running":false`) {
		t.Errorf("status --state: exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	m.Start()
	m.Check("f", data, bad)
}

// A follower sees what happens, and ends when the mount does.
func TestEventsFollow(t *testing.T) {
	m := harness.Simulated(t, "dax", "--event-log", filepath.Join(harness.Dir(t), "copy"))
	data := m.File("f", 1, 8*page)
	out, err := os.Create(filepath.Join(harness.Dir(t), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	follower := exec.Command(os.Getenv("MENDFS_BIN"), "events", "--follow", "--json", m.At)
	follower.Stdout = out
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(time.Minute, func() { _ = follower.Process.Kill() }) // Wait tells
	defer stuck.Stop()
	bad := rng{Off: 2 * page, Len: sector}
	m.Inject("f", bad)
	m.CheckContent("f", data, bad)
	waitFor(t, out.Name(), event.Lost)
	m.Overwrite("f", data, data[bad.Off:bad.End()], bad.Off)
	waitFor(t, out.Name(), event.Reinitialized)
	m.Stop()
	if err := follower.Wait(); err != nil {
		t.Errorf("events --follow, when the mount ended: %v", err)
	}
}

// waitFor waits until an event of the kind is in the file.
func waitFor(t *testing.T, path string, kind event.Kind) {
	t.Helper()
	var text []byte
	for range 500 {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		whole := text[:bytes.LastIndexByte(text, '\n')+1]
		if slices.ContainsFunc(harness.ParseEvents(t, string(whole)), func(e event.Event) bool { return e.Event == kind }) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the follower has not seen %q in 10 seconds: %s", kind, text)
}

func TestEventLogIsACopy(t *testing.T) {
	log := filepath.Join(harness.Dir(t), "events")
	m := harness.Simulated(t, "dax", "--event-log", log)
	data := m.File("f", 1, 8*page)
	m.Inject("f", rng{Off: 0, Len: 1})
	m.CheckContent("f", data, rng{Off: 0, Len: sector})
	m.Stop()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	own := harness.Mendfs(t, "events", "--json", "--state", m.State)
	if len(harness.ParseEvents(t, string(text))) == 0 || string(text) != own.Stdout {
		t.Errorf("the event log has %s, the state directory %s", text, own.Stdout)
	}
}
