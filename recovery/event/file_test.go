package event

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCloseGivesUpOnAWriterThatHangs(t *testing.T) {
	gate := make(chan struct{})
	s := &sink{gate: gate}
	l := start([]*lineFile{{w: s, path: "sink"}}, nil, nil)
	l.Emit(lost(0))
	if err := l.Close(); err == nil {
		t.Error("no error")
	}
	close(gate)
	<-l.done // or the goroutine would outlive the test
}

// slowly is a sink that takes its time, and takes everything.
type slowly struct{ *sink }

func (s slowly) Write(p []byte) (int, error) {
	time.Sleep(closePatience / 4)
	return s.sink.Write(p)
}

func TestCloseWaitsForAWriterThatIsSlow(t *testing.T) {
	s := &sink{}
	l := start([]*lineFile{{w: slowly{s}, path: "sink"}}, nil, nil)
	for off := range int64(6) { // longer than its patience with one that hangs
		l.Emit(lost(off))
	}
	if err := l.Close(); err != nil || len(s.lines()) != 6 {
		t.Errorf("%v, %d lines", err, len(s.lines()))
	}
}

func TestFailedWritesAreCounted(t *testing.T) {
	s, c := &sink{fail: unix.ENOSPC}, newClock()
	l := startTest(t, s, nil, c.read)
	for off := range int64(10) {
		l.Emit(lost(off))
	}
	waitWritten(t, l)
	if err := l.Health(); !errors.Is(err, unix.ENOSPC) || len(s.lines()) != 0 {
		t.Fatalf("health %v, %d lines", err, len(s.lines()))
	}
	l.sweep(false) // a try that fails too
	waitWritten(t, l)
	s.setFail(nil)
	l.Emit(lost(100))
	waitWritten(t, l)
	c.advance(time.Second)
	l.sweep(false)
	waitWritten(t, l)
	var dropped int64
	for _, e := range s.lines() {
		if e.Event == Dropped {
			dropped += e.Count
		}
	}
	if dropped != 10 || l.Counts()[Dropped] != 10 || l.Health() != nil {
		t.Errorf("%d dropped, counted %d, health %v", dropped, l.Counts()[Dropped], l.Health())
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	main, extra := filepath.Join(dir, "events.jsonl"), filepath.Join(dir, "extra")
	const torn = `{"version":1,"id":"01","ti`
	for _, path := range []string{main, extra} {
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for n := range int64(2) { // the second time the files end in a newline
		l, err := New(Options{Path: main, Extra: extra})
		if err != nil {
			t.Fatal(err)
		}
		l.Emit(lost(n))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{main, extra} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text, ok := strings.CutPrefix(string(data), torn+"\n{")
		if !ok || strings.Count(text, "\n") != 2 || strings.Contains(text, "\n\n") {
			t.Errorf("%s: %s", path, data)
		}
	}
}

func TestNewFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	o := Options{Path: filepath.Join(dir, "events.jsonl"), Extra: filepath.Join(dir, "extra")}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l.Emit(lost(0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{o.Path, o.Extra} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Size() == 0 {
			t.Errorf("%s: %v, error %v", path, st, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no directory":          {Path: filepath.Join(dir, "none", "events.jsonl")},
		"a directory":           {Extra: dir},
		"pipe without a reader": {Extra: pipe},
	} {
		if l, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
			_ = l.Close() // the test has failed already
		}
	}
}
