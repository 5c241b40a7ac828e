package event

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Rotated is a log file that is moved away when it is full, to NAME-TIME.EXT beside
// NAME.EXT; the newest of those are kept. It has no goroutine. All methods may be called
// concurrently.
type Rotated struct {
	path  string
	limit int64 // bytes
	keep  int

	mu   sync.Mutex // guards the rest
	file *os.File   // nil: not open
	size int64
}

// NewRotated is a log at path that grows to limit bytes, and keeps so many older ones. The
// file is opened, and created, by the first Write.
func NewRotated(path string, limit int64, keep int) *Rotated {
	return &Rotated{path: path, limit: limit, keep: keep}
}

// Write writes p as a whole to one file. After an error some of it may be there.
func (r *Rotated) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(); err != nil {
		return 0, err
	}
	if r.size > 0 && r.size+int64(len(p)) > r.limit {
		if err := r.rotate(); err != nil {
			return 0, fmt.Errorf("rotating: %w", err)
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

// Close closes the file. Another Write opens it again.
func (r *Rotated) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.close()
}

func (r *Rotated) open() error {
	if r.file != nil {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.size = f, st.Size()
	return nil
}

func (r *Rotated) close() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	return f.Close()
}

// rotate moves the file away, and removes the oldest of those that were.
func (r *Rotated) rotate() error {
	old, err := OlderLogs(r.path)
	if err != nil {
		return err
	}
	before, after := around(r.path)
	at := time.Now().UTC().Truncate(time.Millisecond)
	if len(old) > 0 { // names sort, also where the clock went back
		stamp := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(old[len(old)-1]), before), after)
		if newest, err := time.Parse(logTime, stamp); err == nil && !at.After(newest) {
			at = newest.Add(time.Millisecond)
		}
	}
	to := filepath.Join(filepath.Dir(r.path), before+at.Format(logTime)+after)
	if err := errors.Join(r.close(), os.Rename(r.path, to)); err != nil {
		return err
	}
	for old = append(old, to); len(old) > r.keep; old = old[1:] {
		if err := os.Remove(old[0]); err != nil {
			return err
		}
	}
	return r.open()
}

const logTime = "2006-01-02T15-04-05.000"

// around is what stands before and after the time in the name of a file that was moved away.
func around(path string) (before, after string) {
	after = filepath.Ext(path)
	return strings.TrimSuffix(filepath.Base(path), after) + "-", after
}

// OlderLogs is the files that a Rotated at path has moved away, oldest first.
func OlderLogs(path string) ([]string, error) {
	before, after := around(path)
	list, err := os.ReadDir(filepath.Dir(path)) // sorted by name
	if err != nil {
		return nil, err
	}
	var old []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), before) && strings.HasSuffix(e.Name(), after) {
			old = append(old, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	return old, nil
}
