package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// lostPaths is the paths in the answer of mendfs lost.
func lostPaths(t *testing.T, code int, args ...string) []string {
	t.Helper()
	var answer struct {
		Lost []struct {
			Path    string
			PathB64 []byte `json:"path_b64"`
		}
	}
	decode(t, want(t, code, append([]string{"lost", "--json"}, args...)...), &answer)
	paths := []string{}
	for _, r := range answer.Lost {
		paths = append(paths, r.Path+string(r.PathB64))
	}
	return paths
}

// TestLostFollowsTheFile through renames, of its directory too, hard links and
// unlinks, on the mount, after a remount and when nothing is mounted.
func TestLostFollowsTheFile(t *testing.T) {
	s := newScene(t)
	s.mount("--simulate", "line")
	for _, d := range []string{"e", "d", "old/sub", "empty"} {
		if err := os.MkdirAll(filepath.Join(s.mnt, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(s.mnt, name) }
	for _, name := range []string{"e/f", "e/g", "old/sub/h", "e/removed"} {
		damage(t, s.write(name, bytes.Repeat([]byte("x"), 8192)))
	}
	for _, err := range []error{
		os.Rename(in("e/f"), in("d/f")),
		os.Link(in("e/g"), in("d/g2")),
		os.Rename(in("old"), in("new")),
		os.Symlink(in("d"), in("empty/link")),
		os.Remove(in("e/removed")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The rows of a removed file may be lost or history by now, under its last name.
	removed := func(path string) bool { return path == "e/removed" }
	check := func(when string, target func(dir string) []string) {
		for dir, want := range map[string][]string{
			"d": {"d/f", "d/g2"}, "e": {"e/g"}, "new": {"new/sub/h"}, "new/sub": {"new/sub/h"}, "empty": {}, "d/g2": {"d/g2"},
		} {
			code := exitLossLeft
			if len(want) == 0 {
				code = exitClean
			}
			got := slices.DeleteFunc(lostPaths(t, code, target(dir)...), removed)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: lost %s: got %q, want %q", when, dir, got, want)
			}
		}
	}
	onMount := func(dir string) []string { return []string{in(dir)} }
	offline := func(dir string) []string { return []string{"--state", s.state, dir} }
	check("mounted", onMount)
	check("mounted, by state", offline)
	if got := slices.DeleteFunc(lostPaths(t, exitLossLeft, s.mnt), removed); len(got) != 3 || !slices.Contains(got, "d/f") || !slices.Contains(got, "new/sub/h") {
		t.Errorf("of all: %q", got)
	}
	// The name that is gone is held open, the file lives by its other one.
	held, err := os.Open(in("e/g"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(in("e/g")); err != nil {
		t.Fatal(err)
	}
	for _, path := range lostPaths(t, exitLossLeft, s.mnt) {
		if strings.Contains(path, "deleted") {
			t.Errorf("printed %q", path)
		}
	}
	if err := os.Link(in("d/g2"), in("e/g")); err != nil {
		t.Fatal(err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	s.umount()
	check("not mounted", offline)
	refused(t, 16, "there is no", "lost", "--state", s.state, "old/nope")

	away := s.backing + "-away"
	if err := os.Rename(s.backing, away); err != nil {
		t.Fatal(err)
	}
	r := run(t, "lost", "--state", s.state, "e/f")
	if !strings.Contains(r.stderr, "when last seen") || r.code != exitLossLeft && r.code != exitUsage {
		t.Errorf("without the backing: %+v", r)
	}
	if err := os.Rename(away, s.backing); err != nil {
		t.Fatal(err)
	}
	s.mount("--simulate", "line")
	check("mounted again", onMount)
	if got := lostPaths(t, exitRepaired, "--all", "--state", s.state, "e/removed"); !slices.Equal(got, []string{"e/removed"}) {
		t.Errorf("history of a file that is gone: %q", got)
	}
	s.umount()
}

// damage poisons a file, and has it met.
func damage(t *testing.T, path string) {
	t.Helper()
	want(t, 0, "inject", path, "--range", "64+64")
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
}

// TestNamesThatAreNotUTF8 go in by inject and come out of every list.
func TestNamesThatAreNotUTF8(t *testing.T) {
	s := newScene(t)
	s.mount("--simulate", "line")
	const name = "\xff bad"
	damage(t, s.write(name, make([]byte, 4096)))
	if out := want(t, 0, "inject", "--list", s.mnt); !strings.Contains(out, `"\xff bad"`) {
		t.Errorf("list: %s", out)
	}
	var list struct {
		Injections []map[string]json.RawMessage
	}
	decode(t, want(t, 0, "inject", "--list", "--json", s.mnt), &list)
	if _, hasPath := list.Injections[0]["path"]; hasPath || string(list.Injections[0]["path_b64"]) != `"/yBiYWQ="` {
		t.Errorf("JSON: %s", list.Injections[0])
	}
	if got := lostPaths(t, exitLossLeft, s.mnt+"/"+name); !slices.Equal(got, []string{name}) {
		t.Errorf("lost: %q", got)
	}
	s.umount()
}

// TestStrictIsNotCalledClean without a word.
func TestStrictIsNotCalledClean(t *testing.T) {
	s := newScene(t)
	s.mount("--simulate", "dax", "--semantics", "strict")
	file := s.write("log", make([]byte, 8192))
	want(t, 0, "inject", file, "--range", "64+64")
	if _, err := os.ReadFile(file); err == nil {
		t.Fatal("poison was not met")
	}
	for _, args := range [][]string{{"lost", s.mnt}, {"lost", "--json", file}} {
		if r := run(t, args...); r.code != 0 || !strings.Contains(r.stderr, "strict") || !strings.Contains(r.stderr, "mendfs events "+s.mnt) {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if out := want(t, 0, "events", s.mnt); !strings.Contains(out, "poison in log") {
		t.Errorf("events: %s", out)
	}
	s.umount()
}

// TestEventsSayWhatToRun with a path that works from here; the log's own JSON
// stays relative.
func TestEventsSayWhatToRun(t *testing.T) {
	s := newScene(t)
	s.mount("--simulate", "line")
	damage(t, s.write("log", make([]byte, 8192)))
	if out := want(t, 0, "events", s.mnt); !strings.Contains(out, "next: mendfs lost "+s.mnt+"/log\n") {
		t.Errorf("events: %s", out)
	}
	if out := want(t, 0, "events", "--json", s.mnt); !strings.Contains(out, `"next":"mendfs lost log"`) {
		t.Errorf("events --json: %s", out)
	}
	s.umount()
	if out := want(t, 0, "events", "--state", s.state); !strings.Contains(out, "next: mendfs lost --state "+s.state+" log\n") {
		t.Errorf("events --state: %s", out)
	}
}

// TestFailedDemo cleans up, and recommends nothing.
func TestFailedDemo(t *testing.T) {
	s := newScene(t)
	s.mount()
	t.Setenv("TMPDIR", s.mnt) // a mount in a mount is refused
	if r := run(t, "demo"); r.code == 0 || r.stderr == "" || strings.Contains(r.stdout, "Cleaned up") {
		t.Errorf("%+v", r)
	}
	if left, err := os.ReadDir(s.mnt); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	s.umount()
}
