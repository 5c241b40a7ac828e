package scan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Cursor is a file that keeps how far a scan has come. It is written while the scan
// runs, when it is interrupted, and removed when all was read.
type Cursor struct {
	path  string
	saved time.Time
	found any // to be saved
	state cursorState
}

const cursorVersion = 2

type cursorState struct {
	Version int             `json:"version"`
	Target  string          `json:"target"` // what is scanned
	FS      string          `json:"fs"`     // fileid.Filesystem of it
	Path    []byte          `json:"path_b64"`
	Offset  int64           `json:"offset"` // in the file
	Bytes   int64           `json:"bytes"`
	Files   int64           `json:"files"`
	Bad     int64           `json:"bad"`
	Found   json.RawMessage `json:"found"` // what the caller keeps there
}

// saveEvery is how much time a power cut can cost a scan.
const saveEvery = 5 * time.Second

// OtherError says that a cursor belongs to another scan.
type OtherError struct{ Path, Target string }

func (e *OtherError) Error() string {
	return fmt.Sprintf("%s is the cursor of a scan of %s", e.Path, e.Target)
}

// OpenCursor reads the cursor at path, if there is one, of a scan of target in
// the filesystem called fs. The error may be an *OtherError.
func OpenCursor(path, target, fs string) (*Cursor, error) {
	c := &Cursor{path: path, saved: time.Now(), state: cursorState{Version: cursorVersion, Target: target, FS: fs}}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, c.write() // that it can be written is better known now than after hours
	}
	if err != nil {
		return nil, err
	}
	var old cursorState
	if err := json.Unmarshal(text, &old); err != nil || old.Version != cursorVersion || old.Target == "" {
		return nil, &OtherError{path, "something else: it is no cursor of this version"}
	}
	if old.Target != target || old.FS != fs {
		return nil, &OtherError{path, old.Target}
	}
	c.state = old
	return c, nil
}

// Found is what was saved of Keep's before the scan was interrupted, into out.
func (c *Cursor) Found(out any) error {
	if len(c.state.Found) == 0 {
		return nil
	}
	return json.Unmarshal(c.state.Found, out)
}

// Keep has found, as it is then, saved with the cursor each time.
func (c *Cursor) Keep(found any) { c.found = found }

// Resumes reports whether the scan goes on with one that was interrupted.
func (c *Cursor) Resumes() bool { return c.state.Bytes > 0 }

func (c *Cursor) start() (p Progress, from []string, offset int64) {
	p = Progress{Path: string(c.state.Path), Bytes: c.state.Bytes, Files: c.state.Files, Bad: c.state.Bad}
	if p.Path == "" {
		return p, nil, c.state.Offset
	}
	return p, strings.Split(p.Path, "/"), c.state.Offset
}

func (c *Cursor) due() bool { return time.Since(c.saved) >= saveEvery }

func (c *Cursor) save(p Progress, offset int64) error {
	s := &c.state
	s.Path, s.Offset, s.Bytes, s.Files, s.Bad = []byte(p.Path), offset, p.Bytes, p.Files, p.Bad
	c.saved = time.Now()
	return c.write()
}

func (c *Cursor) write() (err error) {
	if c.found != nil {
		if c.state.Found, err = json.Marshal(c.found); err != nil {
			return err
		}
	}
	text, err := json.Marshal(c.state)
	if err != nil {
		return err
	}
	if err := replace(c.path, text); err != nil {
		return fmt.Errorf("saving the cursor: %w", err)
	}
	return nil
}

// replace gives the file at path another content: a power cut leaves the old or the new.
// Whatever others have put beside it is not touched.
func replace(path string, text []byte) error {
	next, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	_, err = next.Write(text)
	err = errors.Join(err, next.Sync(), next.Close())
	if err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		_ = os.Remove(next.Name()) // it is of no use
	}
	return err
}

// Remove is the end of a scan that has read all.
func (c *Cursor) Remove() error {
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the cursor: %w", err)
	}
	return nil
}
