package soak

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// TestReplay plays the log of a worker again, alone on a fresh mount, in full or as
// shortened by hand. With MENDFS_SOAK_SHRINK=1 it leaves out what the failure does
// not need, and prints the rest.
func TestReplay(t *testing.T) {
	path := os.Getenv("MENDFS_SOAK_REPLAY")
	if path == "" {
		path = "testdata/short.log" // keeps the replay itself working
	}
	profile, ops := readLog(t, path)
	err := replay(t, profile, ops)
	if err == nil {
		return
	}
	t.Errorf("%d operations: %v", len(ops), err)
	if os.Getenv("MENDFS_SOAK_SHRINK") == "" {
		return
	}
	for _, o := range shrink(ops, func(ops []op) bool { return replay(t, profile, ops) != nil }) {
		fmt.Println(o)
	}
}

func readLog(t *testing.T, path string) (profile string, ops []op) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(text), "\n")
	if _, err := fmt.Sscanf(head, "# profile %s", &profile); err != nil {
		t.Fatalf("%s begins with %q: %v", path, head, err)
	}
	for text := range strings.Lines(rest) {
		o, err := parse(text)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		ops = append(ops, o)
	}
	return profile, ops
}

// replay does the operations on a fresh mount and checks all files at the end.
// Preparations that fail end the test.
func replay(t *testing.T, profile string, ops []op) error {
	t.Helper()
	m := harness.Simulated(t, profile)
	dir := harness.Dir(t)
	w, err := newWorker(place{At: m.At, State: m.State, Backing: m.Backing, Rel: "worker", Bare: filepath.Join(dir, "bare"), Logs: dir, Profile: profile})
	if err != nil {
		t.Fatal(err)
	}
	err = w.play(m, ops)
	if err == nil {
		err = w.checkAll()
	}
	if err := errors.Join(w.pause(), w.logFile.Close()); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	return err
}

func (w *worker) play(m *harness.Mount, ops []op) error {
	for n, o := range ops {
		if o.Verb != restart && o.Verb != kill {
			if err := w.do(o); err != nil {
				return fmt.Errorf("operation %d: %w", n, err)
			}
			continue
		}
		if err := w.pause(); err != nil {
			return err
		}
		if o.Verb == kill {
			m.Kill()
			m.Start()
		} else {
			m.Restart()
		}
		if err := w.restarted(o.Verb == kill); err != nil {
			return err
		}
	}
	return nil
}

// shrink leaves out pieces, halves first, as long as it still fails.
func shrink(ops []op, fails func([]op) bool) []op {
	for size := len(ops) / 2; size > 0; size /= 2 {
		for at := 0; at < len(ops); {
			without := slices.Delete(slices.Clone(ops), at, min(len(ops), at+size))
			if fails(without) {
				ops = without
			} else {
				at += size
			}
		}
	}
	return ops
}
