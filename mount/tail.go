package mount

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/event"
)

// pollEvents is how often a followed event log is looked at.
const pollEvents = 200 * time.Millisecond

// readEvents hands over the lines of the event log at path, oldest first,
// those of rotated logs before.
func readEvents(ctx context.Context, path string, q control.EventQuery, line func([]byte) error) error {
	t := &tail{since: q.Since, line: line}
	defer t.close()
	older, _ := event.OlderLogs(path) // opening the log itself fails too, and says why
	for _, old := range older {
		if err := t.readAll(old); err != nil {
			return err
		}
	}
	for {
		if err := t.readAll(path); err != nil || !q.Follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollEvents):
		}
	}
}

// tail reads lines from a file that grows and is replaced now and then.
type tail struct {
	since time.Time
	line  func([]byte) error
	file  *os.File
	r     *bufio.Reader
	part  []byte // a line whose end has not been written yet
}

func (t *tail) close() {
	if t.file != nil {
		_ = t.file.Close() // only read
	}
}

// readAll reads what has come since the last call; if path is another file by
// now, the rest of the old one first.
func (t *tail) readAll(path string) error {
	if err := t.drain(); err != nil {
		return err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not yet, or just being rotated
	}
	if err != nil {
		return err
	}
	if info, err := f.Stat(); t.file != nil && err == nil && isFile(t.file, info) {
		return f.Close()
	}
	t.close()
	t.file, t.r, t.part = f, bufio.NewReader(f), nil
	return t.drain()
}

func (t *tail) drain() error {
	if t.file == nil {
		return nil
	}
	for {
		text, err := t.r.ReadBytes('\n')
		t.part = append(t.part, text...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		whole := bytes.TrimSuffix(t.part, []byte{'\n'})
		t.part = nil
		if !t.wanted(whole) {
			continue
		}
		if err := t.line(whole); err != nil {
			return err
		}
	}
}

// wanted reports whether the event in text happened, or was repeated, since
// t.since. A line that a crash tore is left out.
func (t *tail) wanted(text []byte) bool {
	var e struct{ Time, Last time.Time }
	if err := json.Unmarshal(text, &e); err != nil {
		return false
	}
	return !e.Time.Before(t.since) || !e.Last.Before(t.since)
}
