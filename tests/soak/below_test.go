package soak

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// readRows reads what mendfs lost --all --json printed.
func readRows(path string) ([]ledger.Row, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Version int          `json:"version"`
		Lost    []ledger.Row `json:"lost"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Version != 1 {
		return nil, fmt.Errorf("mendfs lost: version %d, %w", answer.Version, orNil(err))
	}
	return answer.Lost, nil
}

// checkBelow compares the backing files and the ledger as a whole with what
// has to be there, nothing being mounted.
func (w *worker) checkBelow(path string) error {
	rows, err := readRows(path)
	if err != nil {
		return err
	}
	byKey := map[string][]ledger.Row{}
	for _, row := range rows {
		if row.State.Live() && strings.HasPrefix(row.Path, w.rel+"/") {
			byKey[row.File.Key()] = append(byKey[row.File.Key()], row)
		}
	}
	for _, name := range w.oracle.names() {
		key, err := keyOf(filepath.Join(w.Backing, w.rel, name))
		if err != nil {
			return err
		}
		if err := w.checkFileBelow(name, byKey[key]); err != nil {
			return fmt.Errorf("check %s - 0 +0 at 0 seed 0, below (%s): %w", name, w.tags(op{Name: name}), err)
		}
	}
	for _, name := range w.oracle.names() {
		key, err := keyOf(filepath.Join(w.Backing, w.rel, name))
		if err != nil {
			return err
		}
		delete(byKey, key)
	}
	for _, of := range byKey {
		return fmt.Errorf("the ledger has live rows of a file that is gone: %v", of)
	}
	return nil
}

func keyOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	id, err := fileid.Of(int(f.Fd()))
	return id.Key(), errors.Join(err, f.Close())
}

// checkFileBelow wants the ledger's live rows to be the lost bytes, exactly, and
// the backing to hold all others; bytes that were reinitialized are zero there.
func (w *worker) checkFileBelow(name string, rows []ledger.Row) error {
	f, l := w.oracle.files[name], liveOf(rows)
	want := ranges.Of(append(f.hurt.Slice(), f.stale.Slice()...)...)
	if l.all.String() != want.String() {
		return fmt.Errorf("the ledger has %v, and lost is %v", l.all, want)
	}
	got, err := os.ReadFile(filepath.Join(w.Backing, w.rel, name))
	if err != nil {
		return err
	}
	if int64(len(got)) != f.size() {
		return fmt.Errorf("the backing file has %d bytes, want %d", len(got), f.size())
	}
	for i, b := range got {
		at := ranges.Range{Off: int64(i), Len: 1}
		switch {
		case l.lost.Overlaps(at): // the poison is still there, and what is under it nobody can know
		case f.hurt.Overlaps(at) && b == 0:
		case f.hurt.Overlaps(at) && !f.stale.Overlaps(at):
			return fmt.Errorf("byte %d of the backing is reinitialized, and is %#x", i, b)
		case b != f.data[i]:
			return fmt.Errorf("byte %d of the backing is %#x, want %#x", i, b, f.data[i])
		}
	}
	return nil
}

func (w *worker) account() account { return account{Ops: w.done, Poisoned: w.poisoned} }
