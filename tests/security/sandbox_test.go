// Package security tests what a mount lets nobody do: who serves it, who uses
// it, and who stands beside it.
package security

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// capabilityNumbers are those of linux/capability.h that docs/security.md may name.
var capabilityNumbers = map[string]int{
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID, "SETGID": unix.CAP_SETGID, "SETUID": unix.CAP_SETUID,
	"LINUX_IMMUTABLE": unix.CAP_LINUX_IMMUTABLE, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "MKNOD": unix.CAP_MKNOD, "SETFCAP": unix.CAP_SETFCAP,
}

// documented is the capabilities in the table of docs/security.md, as bits.
func documented(t *testing.T) (set uint64) {
	t.Helper()
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `CAP_(\\w+)`").FindAllStringSubmatch(string(text), -1) {
		number, known := capabilityNumbers[row[1]]
		if !known {
			t.Fatalf("docs/security.md names CAP_%s, which this test does not know", row[1])
		}
		set |= 1 << number
	}
	return set
}

// status is the fields of a /proc/PID/status.
func status(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func bits(t *testing.T, text string) uint64 {
	t.Helper()
	set, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestSandboxOnEveryThread has all kinds of threads made first.
func TestSandboxOnEveryThread(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.Simulated(t, "dax", "--allow-other")
	m.Sh("for i in 1 2 3 4 5 6 7 8; do (mkdir d$i; echo x >d$i/f; cat d$i/f; chown 12:34 d$i/f) & done; wait")
	ours := bits(t, status(t, "/proc/self/status")["CapBnd"])
	want := documented(t) & ours
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", m.Pid()))
	if err != nil || len(threads) < 8 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, path := range threads {
		s := status(t, path)
		if s["NoNewPrivs"] != "1" {
			t.Errorf("%s: NoNewPrivs %s", path, s["NoNewPrivs"])
		}
		for _, field := range []string{"CapBnd", "CapPrm"} {
			if got := bits(t, s[field]); got != want {
				t.Errorf("%s: %s %x, want %x", path, field, got, want)
			}
		}
		// Threads that act for callers have less now and then.
		if effective := bits(t, s["CapEff"]); effective&^want != 0 {
			t.Errorf("%s: CapEff %x, want no more than %x", path, effective, want)
		}
		if s["CapInh"] != s["CapAmb"] || bits(t, s["CapInh"]) != 0 {
			t.Errorf("%s: CapInh %s, CapAmb %s", path, s["CapInh"], s["CapAmb"])
		}
	}
}

func TestStatusShowsTheSandbox(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.New(t, harness.Config{})
	var answer struct{ Status []control.Status }
	if err := json.Unmarshal([]byte(harness.Mendfs(t, "status", "--json", m.At).Stdout), &answer); err != nil || len(answer.Status) != 1 {
		t.Fatalf("%+v, %v", answer, err)
	}
	s := answer.Status[0].Sandbox
	if s == nil || !s.NoNewPrivs || !slices.Contains(s.Capabilities, "dac_override") || slices.Contains(s.Capabilities, "sys_resource") {
		t.Errorf("%+v", s)
	}
	if (s.Landlock == 0) == (s.Why == "") {
		t.Errorf("Landlock %d, why %q", s.Landlock, s.Why)
	}
	text := harness.Mendfs(t, "status", m.At).Stdout
	if !strings.Contains(text, "no_new_privs, capabilities") || !strings.Contains(text, "Landlock") {
		t.Errorf("status says %s", text)
	}
}

// landlock skips where the kernel has none that can be used.
func landlock() error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < 2 {
		return fmt.Errorf("no Landlock of version 2 or later: %w", errno)
	}
	return nil
}

// TestServingProcessIsKeptToItsFiles leads it to a file elsewhere, by a link in
// place of its state directory. Root would be allowed to write there.
func TestServingProcessIsKeptToItsFiles(t *testing.T) {
	harness.Need(t, harness.Root, landlock)
	m := harness.Simulated(t, "dax")
	elsewhere, aside := harness.Dir(t), m.State+".aside"
	m.Sh("head -c 65536 /dev/zero | tr '\\0' x >f")
	if r := harness.Mendfs(t, "inject", m.Path("f"), "--range", "4096+64", "--latent"); r.Exit != 0 {
		t.Fatalf("inject: %+v", r)
	}
	if err := errors.Join(os.Remove(filepath.Join(m.State, "events.jsonl")), os.Rename(m.State, aside), os.Symlink(elsewhere, m.State)); err != nil {
		t.Fatal(err)
	}
	m.Sh("cat f >/dev/null")
	time.Sleep(2 * time.Second) // for the event to be written, if that were possible
	if err := errors.Join(os.Remove(m.State), os.Rename(aside, m.State)); err != nil {
		t.Fatal(err)
	}
	untilStatus(t, m, "permission denied")
	if found, err := os.ReadDir(elsewhere); err != nil || len(found) > 0 {
		t.Errorf("it has written %v there, %v", found, err)
	}
	m.Stop()
}

// TestEventLogIsNoLink: whoever puts one there can't have it followed.
func TestEventLogIsNoLink(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.Simulated(t, "dax")
	elsewhere := filepath.Join(harness.Dir(t), "elsewhere")
	if err := os.WriteFile(elsewhere, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(m.State, "events.jsonl")
	if err := errors.Join(os.Remove(log), os.Symlink(elsewhere, log)); err != nil {
		t.Fatal(err)
	}
	loseALine(m)
	untilStatus(t, m, "symbolic links")
	if text, err := os.ReadFile(elsewhere); err != nil || len(text) > 0 {
		t.Errorf("it has written %q there, %v", text, err)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	m.Stop()
}

// loseALine makes an event.
func loseALine(m *harness.Mount) {
	m.Sh("head -c 65536 /dev/zero | tr '\\0' x >f")
	m.Inject("f", ranges.Range{Off: 4096, Len: 64})
	m.Sh("cat f >/dev/null")
}

// untilStatus waits until status has the text.
func untilStatus(t *testing.T, m *harness.Mount, text string) {
	t.Helper()
	said := func() string { return harness.Mendfs(t, "status", m.At).Stdout }
	for end := time.Now().Add(20 * time.Second); !strings.Contains(said(), text); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q: %s", text, said())
		}
	}
}

// TestWorkGoesOnInTheSandbox rotates, records, repairs and renames after a
// restart, under Landlock all the time.
func TestWorkGoesOnInTheSandbox(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.Simulated(t, "dax", "--event-log", filepath.Join(harness.Dir(t), "more.jsonl"))
	m.Sh("mkdir a b; head -c 65536 /dev/zero | tr '\\0' x >a/f; mv a/f b/g; ln b/g a/h; setfattr -n user.x -v y a/h; mkfifo a/p; mknod a/null c 1 3")
	m.Inject("b/g", ranges.Range{Off: 4096, Len: 64})
	m.Sh("cat b/g >/dev/null; printf new | dd of=a/h bs=1 seek=4096 conv=notrunc status=none; cat b/g >/dev/null")
	if lost := harness.Mendfs(t, "lost", "--all", m.At).Stdout; !strings.Contains(lost, "b/g") && !strings.Contains(lost, "a/h") {
		t.Errorf("lost says %q", lost)
	}
	m.Restart()
	m.Sh("cat b/g >/dev/null; rm -r a b")
}
