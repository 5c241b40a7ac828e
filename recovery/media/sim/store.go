package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unicode/utf8"
)

// ErrDamaged says that the store can't be read. Nothing was changed.
var ErrDamaged = errors.New("the list of simulated poison is damaged; move the file away to start without poison")

// ErrVersion says that the store was written by a newer mendfs.
var ErrVersion = errors.New("the list of simulated poison was written by a newer mendfs; use that one, or move the file away to start without poison")

// A store is rewritten when it has at least compactAbove bytes, and
// historyRatio times as many as it needs.
const (
	compactAbove = 256 << 10
	historyRatio = 4
)

// store is the file of records: append-only JSON Lines, rewritten as a whole
// (new file, fsync, rename) when most of its lines are history. A process
// killed at any instant leaves whole lines and at most a torn last one, which
// the next load cuts off. The caller (Medium.mu) lets one call in at a time.
type store struct {
	path  string // "": in memory only
	file  *os.File
	size  int  // bytes
	limit int  // of size; when it is reached tidy looks
	dirty bool // lines were appended since the last sync
	stale bool // an append failed: the file is behind, and must be rewritten
}

// load opens or creates the store and hands its records to apply, in order.
func load(path string, apply func(record)) (*store, error) {
	s := &store{path: path}
	if path == "" {
		return s, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("list of simulated poison: %w", err)
	}
	s.file = f
	if err := s.read(apply); err != nil {
		_ = f.Close() // nothing was written through it
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func (s *store) read(apply func(record)) error {
	data, err := io.ReadAll(s.file)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(data, '\n') + 1
	s.size = whole
	n := 0
	for line := range bytes.Lines(data[:whole]) {
		n++
		r, err := decode(line)
		if err != nil {
			return fmt.Errorf("line %d: %w (%w)", n, ErrDamaged, err)
		}
		if n == 1 && r.Op != opStart {
			return fmt.Errorf("line 1: %w", ErrDamaged)
		}
		if r.Version > storeVersion {
			return ErrVersion
		}
		apply(r)
	}
	if whole < len(data) {
		return s.file.Truncate(int64(whole))
	}
	return nil
}

// append adds one line. Where that fails, the store is stale until tidy.
func (s *store) append(r record) {
	if s.path == "" || s.stale {
		return
	}
	line, err := encode(r)
	if err == nil {
		_, err = s.file.Write(line)
	}
	s.stale = err != nil
	s.dirty = true
	s.size += len(line)
}

// long reports whether it is time for tidy.
func (s *store) long() bool { return s.path != "" && !s.stale && s.size >= s.limit }

// tidy rewrites a store that is new, stale, or mostly history; live makes the
// records that are to be in it.
func (s *store) tidy(live func() []record) error {
	if s.path == "" || (s.size > 0 && !s.stale && !s.long()) {
		return nil
	}
	var text bytes.Buffer
	for _, r := range live() {
		line, err := encode(r)
		if err != nil {
			return err
		}
		text.Write(line)
	}
	s.limit = max(compactAbove, historyRatio*text.Len())
	if s.size > 0 && !s.stale && !s.long() {
		return nil
	}
	return s.rewrite(text.Bytes())
}

func (s *store) rewrite(text []byte) error {
	tmp, err := os.OpenFile(s.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if err == nil {
		err = os.Rename(tmp.Name(), s.path)
	}
	if err != nil {
		_ = tmp.Close() // it is of no use, and the store is as it was
		return err
	}
	_ = s.file.Close() // replaced by a durable one
	s.file, s.size, s.stale, s.dirty = tmp, len(text), false, false
	return syncDir(filepath.Dir(s.path))
}

// sync makes all lines durable.
func (s *store) sync() error {
	if !s.dirty {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		s.stale = true // what the kernel dropped is not to be had again
		return fmt.Errorf("%s: %w", s.path, err)
	}
	s.dirty = false
	return nil
}

func (s *store) close() error {
	if s.file == nil {
		return nil
	}
	return errors.Join(s.sync(), s.file.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func encode(r record) ([]byte, error) {
	if !utf8.ValidString(r.Path) {
		r.Path, r.PathB64 = "", []byte(r.Path)
	}
	line, err := json.Marshal(r)
	return append(line, '\n'), err
}

func decode(line []byte) (record, error) {
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return r, err
	}
	if r.PathB64 != nil {
		r.Path, r.PathB64 = string(r.PathB64), nil
	}
	return r, nil
}
