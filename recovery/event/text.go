package event

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// Line is the event for people: its time and Text, with a newline.
func Line(e Event) string {
	return e.Time.UTC().Format(time.RFC3339) + " " + Text(e) + "\n"
}

// Text is the event in plain words, in one line: what happened, to which bytes
// of which file, what was saved, who met it, and what to do next. What comes
// from outside is quoted where it holds anything but printable characters, so
// that no file name can forge a line or an escape sequence.
func Text(e Event) string {
	var b strings.Builder
	b.WriteString(headline(e))
	note := func(format string, args ...any) {
		b.WriteString("; ")
		fmt.Fprintf(&b, format, args...)
	}
	if e.Salvaged > 0 {
		note("saved %d bytes around it", e.Salvaged)
	}
	if e.Why != "" {
		note("in units of %d bytes: %s", e.Granularity, quote(e.Why))
	}
	if e.Action != "" {
		note("%s", quote(e.Action))
	}
	if len(e.Sharers) > 0 {
		note("shared with %s", words(e.Sharers...))
	}
	if e.Error != "" {
		note("error %s", quote(e.Error))
	}
	if found := words(e.Detected, e.Source); found != "" {
		note("found by %s", found)
	}
	if e.Device != "" && e.Sector != nil {
		note("%s sector %d", quote(e.Device), *e.Sector)
	}
	if e.Pid != 0 {
		note("met by %s", process(e))
	}
	if e.Count > 1 && e.First != nil && e.Event != Dropped {
		note("%d times since %s", e.Count, e.First.UTC().Format(time.RFC3339))
	}
	if e.Next != "" {
		note("next: %s", quote(e.Next))
	}
	return b.String()
}

func headline(e Event) string {
	at := fmt.Sprintf("%s %v", fileName(e), ranges.Range{Off: e.Offset, Len: e.Length})
	switch e.Event {
	case Detected:
		return "poison in " + at
	case Recovered:
		return "served a read over poison in " + at
	case Lost:
		return fmt.Sprintf("lost %d bytes of %s", e.Length, at)
	case Reinitialized:
		return "made usable again: " + at
	case Cleared:
		return "poison went away without mendfs in " + at
	case Healed:
		return "brought back the content of " + at
	case RepairFailed:
		return "could not repair " + at
	case Replayed:
		return "dealt with a repair that a crash had interrupted in " + at
	case Conflict:
		return "wrote nothing: other data is where a crash had interrupted a repair, in " + at
	case Outage:
		if e.Length == 0 {
			return "the backing filesystem fails, and not by poison; nothing was zeroed"
		}
		return "the storage fails, and not by poison; nothing was zeroed in " + at
	case MetadataError:
		return "names, sizes or mappings can't be read of " + fileName(e)
	case Dropped:
		return fmt.Sprintf("%d events were not written; the ledger has their ranges", e.Count)
	}
	return quote(string(e.Event)) + " in " + at
}

func fileName(e Event) string {
	switch path := pathOf(e); {
	case path != "":
		return quoteName(path)
	case e.Ino != 0:
		return fmt.Sprintf("inode %d", e.Ino)
	case e.Device != "":
		return quote(e.Device)
	}
	return "a file"
}

func pathOf(e Event) string {
	if e.PathB64 != nil {
		return string(e.PathB64)
	}
	return e.Path
}

func process(e Event) string {
	text := "pid " + strconv.FormatUint(uint64(e.Pid), 10)
	if e.Comm != "" {
		text = quoteName(e.Comm) + " (" + text + ")"
	}
	if e.UID != nil {
		text += fmt.Sprintf(" of user %d", *e.UID)
	}
	return text
}

func words(texts ...string) string {
	var out []string
	for _, t := range texts {
		if t != "" {
			out = append(out, quote(t))
		}
	}
	return strings.Join(out, ", ")
}

// quote leaves printable text as it is, and makes a Go string of any other.
func quote(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return text
	}
	return strconv.Quote(text)
}

// quoteName quotes also what could be mistaken for the words around a name.
func quoteName(name string) string {
	if strings.ContainsAny(name, " \"'\\;()[]") {
		return strconv.Quote(name)
	}
	return quote(name)
}

// next is what to do about an event that does not say it itself.
func next(e Event) string {
	file := shellWord(pathOf(e))
	switch e.Event {
	case Detected, Recovered, Lost, Cleared:
		return "mendfs lost " + file
	case Reinitialized, Replayed:
		return "mendfs lost --all " + file
	case RepairFailed, Conflict:
		return "mendfs lost --pending " + file
	case Outage:
		return "see the kernel's log (dmesg) for the device, mend it, and mount again"
	case MetadataError:
		return "unmount, check the filesystem (e2fsck or xfs_repair), and mount again"
	case Dropped:
		return "mendfs lost MOUNTPOINT"
	}
	return ""
}

// shellWord is a path as a shell takes it, MOUNTPOINT if there is no safe way
// to write it.
func shellWord(path string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,:@%="
	switch {
	case path == "" || quote(path) != path:
		return "MOUNTPOINT"
	case strings.HasPrefix(path, "-"):
		return shellWord("./" + path)
	case strings.Trim(path, plain) == "":
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
