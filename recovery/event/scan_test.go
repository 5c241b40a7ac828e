package event

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// line is an event of minute m; count > 1 says that its repeats went on for
// half a minute.
func line(id string, m int, count int64) string {
	at := time.Date(2026, 1, 1, 0, m, 0, 0, time.UTC)
	e := Event{Version: 1, ID: id, Time: at, Event: Lost, Count: count}
	if count > 1 {
		last := at.Add(30 * time.Second)
		e.First, e.Last = &at, &last
	}
	text, err := Encode(e)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func TestScan(t *testing.T) {
	newer := strings.Replace(line("n", 0, 1), `"version":1`, `"version":2`, 1)
	for _, c := range []struct {
		name, file string
		since      time.Duration // after the start of the year
		want       []string      // id×count, or "line N" for a line that is not understood
	}{
		{"empty", "", 0, nil},
		{"in order", line("a", 0, 1) + line("b", 1, 1), 0, []string{"a×1", "b×1"}},
		{"folded to the newest", line("a", 0, 1) + line("b", 0, 1) + line("a", 0, 7), 0, []string{"a×7", "b×1"}},
		{"since", line("a", 0, 1) + line("b", 1, 1) + line("c", 2, 1), time.Minute, []string{"b×1", "c×1"}},
		{"repeated since", line("a", 0, 7) + line("b", 0, 1), 10 * time.Second, []string{"a×7"}},
		{"torn last line", line("a", 0, 1) + line("b", 1, 1)[:30], 0, []string{"a×1"}},
		{"whole last line without newline", line("a", 0, 1) + strings.TrimSpace(line("b", 1, 1)), 0, []string{"a×1", "b×1"}},
		{"torn line in the middle", line("a", 0, 1)[:30] + "\n" + line("b", 1, 1), 0, []string{"line 1", "b×1"}},
		{"empty lines", "\n\n" + line("a", 0, 1) + "\n", 0, []string{"a×1"}},
		{"newer version", newer + line("a", 0, 1), 0, []string{"line 1", "a×1"}},
		{"something else", "{}\n[]\n" + line("a", 0, 1), 0, []string{"line 1", "line 2", "a×1"}},
		{"endless line", strings.Repeat("x", longestLine*3) + "\n" + line("a", 0, 1), 0, []string{"line 1", "a×1"}},
		{"unknown fields are for later", strings.Replace(line("a", 0, 1), `{`, `{"new":[1],`, 1), 0, []string{"a×1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(c.since)
			if got := scanned(t, strings.NewReader(c.file), since); !sameItems(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if got := scanned(t, iotest.OneByteReader(strings.NewReader(c.file)), since); !sameItems(got, c.want) {
				t.Errorf("byte by byte: got %v, want %v", got, c.want)
			}
		})
	}
}

// sameItems compares without order: a line that is not understood comes at
// once, events only when they are settled.
func sameItems(got, want []string) bool {
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	return slices.Equal(got, want)
}

func scanned(t *testing.T, r io.Reader, since time.Time) (out []string) {
	t.Helper()
	for e, err := range Scan(r, since) {
		var bad *LineError
		switch {
		case errors.As(err, &bad):
			out = append(out, fmt.Sprintf("line %d", bad.Line))
		case err != nil:
			t.Fatal(err)
		default:
			out = append(out, fmt.Sprintf("%s×%d", e.ID, e.Count))
		}
	}
	return out
}

func TestScanHoldsFewEvents(t *testing.T) {
	var file strings.Builder
	for m := range 1000 {
		file.WriteString(line(fmt.Sprint(m), m, 1))
	}
	r := strings.NewReader(file.String())
	for e, err := range Scan(iotest.OneByteReader(r), time.Time{}) {
		if err != nil || e.ID != "0" {
			t.Fatalf("first event %q, error %v", e.ID, err)
		}
		if r.Len() < file.Len()/2 {
			t.Errorf("the first event came when only %d of %d bytes were left", r.Len(), file.Len())
		}
		return
	}
	t.Fatal("nothing came")
}

func TestScanTellsReadErrors(t *testing.T) {
	r := io.MultiReader(strings.NewReader(line("a", 0, 1)), iotest.ErrReader(io.ErrClosedPipe))
	var ids []string
	var last error
	for e, err := range Scan(r, time.Time{}) {
		if last = err; err == nil {
			ids = append(ids, e.ID)
		}
	}
	if !slices.Equal(ids, []string{"a"}) || !errors.Is(last, io.ErrClosedPipe) {
		t.Errorf("events %v, error %v", ids, last)
	}
}

func FuzzScan(f *testing.F) {
	for _, e := range examples() {
		text, err := Encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(text, text[:len(text)/2]...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for e, err := range Scan(strings.NewReader(string(data)), time.Time{}) {
			var bad *LineError
			if err != nil && !errors.As(err, &bad) {
				t.Fatalf("reading memory failed: %v", err)
			}
			if err != nil {
				continue
			}
			text, err := Encode(e)
			if err != nil {
				continue // a time that JSON takes and does not give
			}
			back, err := Decode(text)
			if err != nil || !reflect.DeepEqual(normal(back), normal(e)) {
				t.Errorf("%s came back as %+v, error %v", text, back, err)
			}
		}
	})
}

// normal makes what JSON does not tell apart equal.
func normal(e Event) Event {
	if len(e.PathB64) == 0 {
		e.PathB64 = nil
	}
	e.Time = e.Time.UTC()
	for _, at := range []**time.Time{&e.First, &e.Last} {
		if *at != nil {
			utc := (*at).UTC()
			*at = &utc
		}
	}
	return e
}
