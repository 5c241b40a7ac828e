package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// eventLine is an event of the second s; repeated until the second last, if
// that is not 0.
func eventLine(s, last int) string {
	text := fmt.Sprintf(`{"id":"%d","time":"2026-11-21T03:00:%02dZ"`, s, s)
	if last > 0 {
		text += fmt.Sprintf(`,"last":"2026-11-21T03:00:%02dZ"`, last)
	}
	return text + "}"
}

func writeLines(t *testing.T, path string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEventsOfRotatedLogsComeFirst(t *testing.T) {
	dir := t.TempDir() + "/with [brackets]"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeLines(t, dir+"/events-2026-11-21T03-00-02.000.jsonl", eventLine(1, 0)+"\n", eventLine(2, 0)+"\n")
	writeLines(t, dir+"/events-2026-11-21T03-00-04.000.jsonl", eventLine(3, 9)+"\n", "torn by a cra\n", eventLine(4, 0)+"\n")
	writeLines(t, dir+"/events.jsonl", eventLine(5, 0)+"\n", eventLine(6, 0)+"\n", eventLine(7, 0)) // the end is not written yet
	for name, c := range map[string]struct {
		since int
		want  []string
	}{
		"all":                       {0, []string{eventLine(1, 0), eventLine(2, 0), eventLine(3, 9), eventLine(4, 0), eventLine(5, 0), eventLine(6, 0)}},
		"since, with late repeats":  {5, []string{eventLine(3, 9), eventLine(5, 0), eventLine(6, 0)}},
		"since later than anything": {50, nil},
	} {
		t.Run(name, func(t *testing.T) {
			q := control.EventQuery{}
			if c.since > 0 {
				q.Since = time.Date(2026, 11, 21, 3, 0, c.since, 0, time.UTC)
			}
			var got []string
			err := readEvents(context.Background(), dir+"/events.jsonl", q, func(line []byte) error {
				got = append(got, string(line))
				return nil
			})
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestFollowedEventsSurviveRotation(t *testing.T) {
	path := t.TempDir() + "/events.jsonl"
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lines, done := make(chan string), make(chan error, 1)
	go func() { // ends with ctx
		done <- readEvents(ctx, path, control.EventQuery{Follow: true}, func(line []byte) error {
			lines <- string(line)
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s did not come", want)
		}
	}
	writeLines(t, path, eventLine(1, 0)+"\n", eventLine(2, 0)[:9])
	expect(eventLine(1, 0))
	writeLines(t, path, eventLine(2, 0)[9:]+"\n", eventLine(3, 0)+"\n")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	writeLines(t, path, eventLine(4, 0)+"\n")
	for s := 2; s <= 4; s++ {
		expect(eventLine(s, 0))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEventsStopWhereTheReaderFails(t *testing.T) {
	path := t.TempDir() + "/events.jsonl"
	writeLines(t, path, eventLine(1, 0)+"\n", eventLine(2, 0)+"\n")
	boom, n := errors.New("boom"), 0
	err := readEvents(context.Background(), path, control.EventQuery{Follow: true}, func([]byte) error { n++; return boom })
	if !errors.Is(err, boom) || n != 1 {
		t.Errorf("%v after %d lines", err, n)
	}
}

// TestPendingRepairs asks a state directory that a crash has left.
func TestPendingRepairs(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(filepath.Join(dir, journalFile), "fs")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(filepath.Join(dir, ledgerFile), "fs", fileid.ID{Ino: 2})
	if err != nil {
		t.Fatal(err)
	}
	r := records{ledger: l, journal: j, within: -1}
	image := make([]byte, ranges.PageSize)
	image[0] = 1
	intent := func(path string, ino uint64) *journal.Intent {
		in := &journal.Intent{FS: "fs", File: fileid.ID{Ino: ino}, Path: path, Range: ranges.Page(0), Size: 100, End: 100, Image: image, Time: 1e9}
		if err := j.Begin(in); err != nil {
			t.Fatal(err)
		}
		return in
	}
	open, closed, kept := intent("d/open", 5), intent("d/closed", 6), intent("kept", 7)
	err = errors.Join(
		l.Commit(ledger.Change{Close: []uint64{closed.ID}}), // and a crash before the journal knew
		j.Keep(kept),
		j.SaveImage(fileid.ID{Ino: 8}, "d/refused", journal.Image{Page: 4096, Data: image, Pending: true}),
		j.SaveImage(fileid.ID{Ino: 9}, "d/salvaged", journal.Image{Page: 4096, Data: image}),
	)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{
		"":       {"d/open interrupted", "kept conflict", "d/refused refused"},
		"d":      {"d/open interrupted", "d/refused refused"},
		"d/open": {"d/open interrupted"},
	} {
		list, err := r.Pending(context.Background(), path)
		var got []string
		for _, p := range list {
			got = append(got, fmt.Sprint(p.Path, " ", p.Why))
			if !slices.Equal(p.Image, image) || p.Kept == (p.Why == control.Interrupted) || p.Next == "" {
				t.Errorf("%s: %+v", p.Path, p)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("pending in %q: %q, %v, want %q", path, got, err, want)
		}
	}
	if _, err := r.Pending(context.Background(), "ept"); err == nil {
		t.Error("a name that nothing ever had is answered")
	}
	var s control.Status
	if err := r.count(&s); err != nil || s.OpenIntents != 1 || s.KeptImages != 2 {
		t.Errorf("open intent %d: status %+v, %v", open.ID, s, err)
	}
	if err := errors.Join(j.Shutdown(), l.Close()); err != nil {
		t.Error(err)
	}
}
