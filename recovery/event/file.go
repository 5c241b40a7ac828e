package event

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	rotateAt = 64 << 20 // bytes
	rotated  = 4        // files kept beside the one that is being written
)

// lineFile is a file of lines. After a crash or a failed write it may end in
// the middle of one.
type lineFile struct {
	w    io.WriteCloser
	path string
	torn bool
}

// openRotated opens a log that is rotated when it is full.
func openRotated(path string) (*lineFile, error) {
	f, err := openAppend(path) // tells now what would be told at the first event
	if err != nil {
		return nil, err
	}
	if err := f.close(); err != nil {
		return nil, err
	}
	f.w = NewRotated(path, rotateAt, rotated)
	return f, nil
}

// openAppend opens a log that grows for ever.
func openAppend(path string) (*lineFile, error) {
	// O_NONBLOCK: a pipe without a reader is an error, not a mount that hangs.
	// O_NOFOLLOW: a symbolic link could lead into the mount itself.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	torn, err := endsTorn(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("event log: %w", err), f.Close())
	}
	return &lineFile{w: f, path: path, torn: torn}, nil
}

func endsTorn(path string) (bool, error) {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close() // opened for reading
	last := []byte{0}
	_, err = f.ReadAt(last, st.Size()-1)
	return last[0] != '\n', err
}

// append writes a line, which ends in a newline.
func (f *lineFile) append(line []byte) error {
	if f.torn {
		line = append([]byte{'\n'}, line...)
	}
	_, err := f.w.Write(line)
	f.torn = err != nil
	if err != nil {
		return fmt.Errorf("event log %s: %w", f.path, err)
	}
	return nil
}

func (f *lineFile) close() error {
	if err := f.w.Close(); err != nil {
		return fmt.Errorf("event log %s: %w", f.path, err)
	}
	return nil
}
