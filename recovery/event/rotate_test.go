package event

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestRotated: a log holds whole lines, the newest of all, in files of bounded size, oldest
// first; what was there before it was opened counts.
func TestRotated(t *testing.T) {
	const limit, keep = 100, 3
	path := filepath.Join(t.TempDir(), "log.jsonl")
	if err := os.WriteFile(path, bytes.Repeat([]byte("before..\n"), 10), 0o600); err != nil {
		t.Fatal(err)
	}
	want := ""
	for n := range 200 {
		r := NewRotated(path, limit, keep)
		line := fmt.Sprintf("line %04d\n", n)
		if _, err := r.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if n%7 > 0 {
			_, err := r.Write([]byte(line))
			want += line
			if err != nil {
				t.Fatal(err)
			}
		}
		want += line
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	old, err := OlderLogs(path)
	if err != nil || len(old) != keep {
		t.Fatalf("%d older logs, want %d: %v", len(old), keep, err)
	}
	got := ""
	for _, name := range append(old, path) {
		b, err := os.ReadFile(name)
		if err != nil || len(b) > limit || len(b) < limit/2 && name != path {
			t.Errorf("%s has %d bytes: %v", name, len(b), err)
		}
		got += string(b)
	}
	if len(got) == 0 || got != want[len(want)-len(got):] {
		t.Errorf("the logs have %q", got)
	}
}

// TestLineLongerThanALog: one that is longer than a log may be is a log of its own.
func TestLineLongerThanALog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := NewRotated(path, 10, 5)
	for range 3 {
		if _, err := r.Write(make([]byte, 50)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if old, err := OlderLogs(path); len(old) != 2 || err != nil {
		t.Errorf("%v, %v", old, err)
	}
}

// TestClosedLogsLeaveNoGoroutine.
func TestClosedLogsLeaveNoGoroutine(t *testing.T) {
	cycle := func() {
		l, err := New(Options{Path: filepath.Join(t.TempDir(), "events.jsonl")})
		if err != nil {
			t.Fatal(err)
		}
		l.Emit(lost(0))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cycle()
	before := runtime.NumGoroutine()
	for range 50 {
		cycle()
	}
	if after := runtime.NumGoroutine(); after > before+5 { // others of the test binary come and go
		t.Errorf("%d goroutines before 50 logs, %d after", before, after)
	}
}
