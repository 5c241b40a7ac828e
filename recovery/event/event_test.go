package event

import (
	"bytes"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files anew")

// examples has every kind, every field, and every way to name a file.
func examples() []Event {
	at := time.Date(2026, 11, 21, 3, 4, 5, 123456789, time.UTC)
	later := at.Add(42 * time.Second)
	user, sector := uint32(999), int64(123456)
	full := Event{
		Version: 1, ID: "01JD6Y0000000000000000000A", Time: at, Event: Lost, Path: "base/16384/2619",
		FS: "0b7c1c9e-5b1e-4f3c-9a51-8f0a2f6f1d11", Dev: "259:0", Ino: 1311, Offset: 81920, Length: 64,
		Source: "kernel", Detected: "eio", Salvaged: 4032, Pid: 4242, UID: &user, Comm: "postgres",
		Device: "/dev/pmem0", Sector: &sector, Action: "zero-filled", Count: 1, Next: "mendfs lost base/16384/2619",
	}
	whole := full
	whole.Granularity, whole.Why = 4096, "the sectors of /dev/pmem0 have 4096 bytes"
	shared := full
	shared.Event, shared.Action, shared.Sharers = Reinitialized, "raw-zeroed-and-written", []string{"other [81920 +512)", "a b [0 +512)"}
	out := []Event{full, whole, shared}
	folded := full
	folded.Count, folded.First, folded.Last = 17, &at, &later
	out = append(out, folded)
	for _, k := range []Kind{Detected, Recovered, Reinitialized, Cleared, Healed, RepairFailed, Replayed, Conflict, Outage, MetadataError, Dropped} {
		e := Event{Version: 1, ID: "01JD6Y0000000000000000000B", Time: at, Event: k, Path: "a", Offset: 4096, Length: 4096, Count: 1}
		if k == RepairFailed || k == Outage {
			e.Error = "EIO"
		}
		if k == Dropped {
			e.Path, e.Count = "", 1000
		}
		e.Next = next(e)
		out = append(out, e)
	}
	for _, path := range []string{"with space", "it's", "-rf", "new\nline; next: rm", "esc\x1b[2J", "über <b>&", "bidi\u202e"} {
		e := Event{Version: 1, ID: "01JD6Y0000000000000000000C", Time: at, Event: Lost, Path: path, Length: 64, Pid: 1, Comm: "a\tb", Count: 1}
		e.Next = next(e)
		out = append(out, e)
	}
	notUTF8 := Event{Version: 1, ID: "01JD6Y0000000000000000000D", Time: at, Event: Lost, PathB64: []byte("a/\xff\xfe"), Length: 64, Count: 1}
	notUTF8.Next = next(notUTF8)
	noPath := Event{Version: 1, ID: "01JD6Y0000000000000000000E", Time: at, Event: Lost, Ino: 12, Length: 64, Count: 1, Next: "see"}
	return append(out, notUTF8, noPath)
}

func TestGoldenSchema(t *testing.T) {
	var lines []byte
	for _, e := range examples() {
		line, err := Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line...)
		if back, err := Decode(line); err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%s came back as %+v, error %v", line, back, err)
		}
	}
	golden(t, "testdata/events.jsonl", lines)
}

func TestGoldenText(t *testing.T) {
	var text strings.Builder
	for _, e := range examples() {
		text.WriteString(Line(e))
	}
	golden(t, "testdata/events.txt", []byte(text.String()))
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is no longer what is written (-update after a change that readers can bear):\n%s", file, got)
	}
}

// No name makes a second line, an escape sequence or a next step of its own.
func FuzzTextIsOneLine(f *testing.F) {
	for _, e := range examples() {
		f.Add(pathOf(e), e.Comm, e.Error)
	}
	f.Fuzz(func(t *testing.T, path, comm, failure string) {
		e := Event{Event: Lost, Path: path, PathB64: nil, Pid: 1, Comm: comm, Error: failure}
		if !utf8.ValidString(path) {
			e.Path, e.PathB64 = "", []byte(path)
		}
		e.Next = next(e)
		line := Line(e)
		body, ended := strings.CutSuffix(line, "\n")
		if !ended || !utf8.ValidString(line) || strings.ContainsFunc(body, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("not one printable line: %q", line)
		}
	})
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{
		"a/b.c":   "a/b.c",
		"-rf":     "./-rf",
		"- x":     "'./- x'",
		"it's":    `'it'\''s'`,
		"$(x)":    "'$(x)'",
		"é":       "'é'",
		"a\nb":    "MOUNTPOINT",
		"a\xff":   "MOUNTPOINT",
		"":        "MOUNTPOINT",
		"~root/x": "'~root/x'",
	} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
