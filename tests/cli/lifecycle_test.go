package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

func TestReadyLine(t *testing.T) {
	m := harness.Simulated(t, "dax")
	for _, word := range []string{"mendfs: ", m.At, m.State, "recover"} {
		if !strings.Contains(m.Ready(), word) {
			t.Errorf("the ready line is %q, and does not say %q", m.Ready(), word)
		}
	}
	if kind := harness.MountedAs(t, m.At); kind != "fuse.mendfs" {
		t.Errorf("mounted is %q", kind)
	}
}

// However a mount is ended, it exits with 0 and leaves nothing.
func TestWaysToEnd(t *testing.T) {
	signal := func(s syscall.Signal) func(t *testing.T, m *harness.Mount) {
		return func(t *testing.T, m *harness.Mount) {
			if err := syscall.Kill(m.Pid(), s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, end := range map[string]func(t *testing.T, m *harness.Mount){
		"SIGINT":  signal(syscall.SIGINT),
		"SIGTERM": signal(syscall.SIGTERM),
		"umount": func(t *testing.T, m *harness.Mount) {
			if err := unix.Unmount(m.At, 0); err != nil {
				t.Fatal(err)
			}
		},
		"mendfs umount": func(t *testing.T, m *harness.Mount) {
			if r := harness.Mendfs(t, "umount", m.At); r.Exit != exitOK {
				t.Fatalf("exit %d: %s", r.Exit, r.Stderr)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := harness.Simulated(t, "dax")
			data := m.File("f", 1, 5*page)
			end(t, m)
			m.WaitExit()
			got, err := os.ReadFile(m.Below("f"))
			if err != nil {
				t.Fatal(err)
			}
			harness.Compare(t, "the backing file", got, data)
			m.Start()
			m.Check("f", data)
		})
	}
}

func TestDaemon(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	_, b, m, s := place(t)
	r := harness.Mendfs(t, "mount", "--daemon", "--state", s, b, m)
	if r.Exit != exitOK || !strings.Contains(r.Stdout, m) || strings.Count(r.Stdout, "\n") != 1 {
		t.Fatalf("mount --daemon: exit %d, %q, %q", r.Exit, r.Stdout, r.Stderr)
	}
	t.Cleanup(func() {
		if harness.MountedAs(t, m) == "fuse.mendfs" {
			t.Errorf("%s has to be detached", m)
			_ = unix.Unmount(m, unix.MNT_DETACH) // said already
		}
	})
	if kind := harness.MountedAs(t, m); kind != "fuse.mendfs" { // at once: no waiting
		t.Fatalf("mounted is %q", kind)
	}
	if _, err := os.ReadFile(filepath.Join(m, "file")); err != nil {
		t.Error(err)
	}
	pid := statusPid(t, m)
	if sid, err := unix.Getsid(pid); err != nil || sid == mySid(t) {
		t.Errorf("the daemon is in session %d, the caller's; %v", sid, err)
	}
	// An error is the caller's, not the daemon's log's.
	refuses(t, exitOperational, []string{"already mounted"}, "mount", "--daemon", "--state", s, b, m)
	refuses(t, exitUsage, []string{"--frobnicate"}, "mount", "--daemon", "--frobnicate", b, m)
	if r := harness.Mendfs(t, "umount", m); r.Exit != exitOK {
		t.Errorf("umount: exit %d: %s", r.Exit, r.Stderr)
	}
	for range 300 {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the daemon, pid %d, lives on", pid)
	_ = syscall.Kill(pid, syscall.SIGKILL) // said already
}

func statusPid(t *testing.T, at string) int {
	t.Helper()
	var answer struct {
		Status []struct {
			Pid int `json:"pid"`
		} `json:"status"`
	}
	r := harness.Mendfs(t, "status", "--json", at)
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || len(answer.Status) != 1 || answer.Status[0].Pid <= 1 {
		t.Fatalf("status: exit %d, %q, %q, %v", r.Exit, r.Stdout, r.Stderr, err)
	}
	return answer.Status[0].Pid
}

func mySid(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	return sid
}

func TestOverMount(t *testing.T) {
	harness.Need(t, harness.Root)
	_, b, _, _ := place(t)
	before := tree(t, b)
	m := harness.New(t, harness.Config{Backing: b, Over: true, Flags: []string{"--simulate", "dax"}})
	if kind := harness.MountedAs(t, b); kind != "fuse.mendfs" {
		t.Fatalf("mounted over %s is %q", b, kind)
	}
	if got := tree(t, b); got != before {
		t.Errorf("through the mount: %s", got)
	}
	data := m.File("new", 2, 4*page)
	bad := rng{Off: page, Len: sector}
	m.Inject("new", bad)
	m.Check("new", data, bad)
	data = m.Overwrite("new", data, data[bad.Off:bad.End()], bad.Off)
	m.Stop()
	if kind := harness.MountedAs(t, b); kind != "" {
		t.Fatalf("after the unmount %s is still covered by %q", b, kind)
	}
	got, err := os.ReadFile(filepath.Join(b, "new"))
	if err != nil {
		t.Fatal(err)
	}
	harness.Compare(t, "what was written through the mount, after it", got, data)
	if err := os.Remove(filepath.Join(b, "new")); err != nil {
		t.Fatal(err)
	}
	if after := tree(t, b); after != before {
		t.Errorf("after the unmount is there: %s", after)
	}
}

// kill -9 leaves a dead mount. The next mount says so and takes its place, also over the
// backing directory itself.
func TestDeadMountIsReplaced(t *testing.T) {
	for name, over := range map[string]bool{"beside": false, "over-mounted": true} {
		t.Run(name, func(t *testing.T) {
			m := harness.New(t, harness.Config{Over: over, Flags: []string{"--simulate", "dax"}})
			data := m.File("f", 1, 4*page)
			m.Inject("f", rng{Off: 0, Len: 1})
			m.Kill()
			if _, err := os.Stat(m.Path("f")); !errors.Is(err, unix.ENOTCONN) {
				t.Errorf("in a dead mount: %v, want ENOTCONN", err)
			}
			refuses(t, exitOperational, []string{"dead"}, "status", m.At)
			m.Start()
			m.Check("f", data, rng{Off: 0, Len: sector})
			m.Kill()
			if r := harness.Mendfs(t, "umount", m.At); r.Exit != exitOK {
				t.Errorf("umount of a dead mount: exit %d: %s", r.Exit, r.Stderr)
			}
			if kind := harness.MountedAs(t, m.At); kind != "" {
				t.Errorf("after the umount %s is still covered by %q", m.At, kind)
			}
			m.Start()
		})
	}
}

func TestReadOnlyMount(t *testing.T) {
	_, b, _, _ := place(t)
	before := tree(t, b)
	m := harness.New(t, harness.Config{Backing: b, Flags: []string{"--read-only"}})
	if err := os.WriteFile(m.Path("new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("creating a file: %v, want EROFS", err)
	}
	m.Stop()
	if after := tree(t, b); after != before {
		t.Error("the backing directory has changed")
	}
}

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

// Poison belongs to the file, and to the state directory.
func TestPoisonSurvivesRenameAndRemount(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 8*page)
	bad := rng{Off: 2 * page, Len: sector}
	m.Inject("f", bad)
	mkdir(t, m.Path("dir"))
	if err := os.Rename(m.Path("f"), m.Path("dir/g")); err != nil {
		t.Fatal(err)
	}
	m.Check("dir/g", data, bad)
	m.Restart()
	m.Check("dir/g", data, bad)
	if left := m.Poison("dir/g"); !left.Overlaps(bad) {
		t.Errorf("what is left of the poison: %v", left)
	}
	if r := harness.Mendfs(t, "inject", "--clear", m.At); r.Exit != exitOK {
		t.Errorf("inject --clear: exit %d: %s", r.Exit, r.Stderr)
	}
	if left := m.Poison("dir/g"); !left.Empty() {
		t.Errorf("after --clear is left: %v", left)
	}
}

func TestRandomPoisonIsTheSameForASeed(t *testing.T) {
	var first string
	for range 2 {
		m := harness.Simulated(t, "dax")
		m.File("f", 1, 32*page)
		if r := harness.Mendfs(t, "inject", m.At, "--random", "10", "--seed", "7"); r.Exit != exitOK {
			t.Fatalf("inject: exit %d: %s", r.Exit, r.Stderr)
		}
		poison := m.Poison("f").String()
		if first == "" {
			first = poison
		}
		if poison != first || poison == "{}" {
			t.Errorf("the poison is %s, and was %s", poison, first)
		}
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

func TestDemo(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	t.Setenv("TMPDIR", harness.Dir(t))
	r := harness.Mendfs(t, "demo")
	if r.Exit != exitOK {
		t.Errorf("exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("the demo leaves %v, %v", left, err)
	}
}

func TestDoctor(t *testing.T) {
	_, b, _, _ := place(t)
	before := tree(t, b)
	r := harness.Mendfs(t, "doctor", b)
	if r.Exit != exitOK || !strings.Contains(r.Stdout, "/dev/fuse") {
		t.Errorf("exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	if after := tree(t, b); after != before {
		t.Error("the backing directory has changed")
	}
}

// What was unmounted can be mounted again at once, though the process that
// served it ends a moment later.
func TestMountAgainAtOnce(t *testing.T) {
	m := harness.New(t, harness.Config{})
	for range 20 {
		if err := unix.Unmount(m.At, 0); err != nil {
			t.Fatal(err)
		}
		next := harness.New(t, harness.Config{Backing: m.Backing, State: m.State})
		m.WaitExit()
		m = next
	}
}
