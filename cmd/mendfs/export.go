package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// manifestName is the file that says what the others in an export are. It is written
// last: an export without it is not complete.
const manifestName = "manifest.json"

// manifest is manifest.json, version 1.
type manifest struct {
	Version int        `json:"version"`
	FS      string     `json:"fs"`
	Backing string     `json:"backing"`
	State   string     `json:"state"`
	Time    time.Time  `json:"time"`
	Images  []exported `json:"images"`
	Unread  []unread   `json:"unread,omitempty"`
}

// exported is one image: a page of a file, as far as the file reaches.
type exported struct {
	Name         string         `json:"name"` // of the file with the bytes, in the same directory
	Why          control.Why    `json:"why"`  // salvaged, or why a repair is pending
	Next         string         `json:"next"`
	ID           uint64         `json:"id,omitempty"` // as in lost --pending
	File         fileid.ID      `json:"file"`
	Path         string         `json:"path,omitempty"`
	PathB64      []byte         `json:"path_b64,omitempty"` // of a path that is not UTF-8
	Time         time.Time      `json:"time,omitzero"`
	ranges.Range                // offset, length: where the bytes belong in the file
	Missing      []ranges.Range `json:"missing"` // zero in the image, because they could not be had; file offsets
}

// unread is an image that the state disk does not give back, so that it is not in the
// export.
type unread struct {
	Why     control.Why `json:"why"`
	File    fileid.ID   `json:"file"`
	Path    string      `json:"path,omitempty"`
	PathB64 []byte      `json:"path_b64,omitempty"`
	ranges.Range
	Error string `json:"error"`
}

const salvaged control.Why = "salvaged"

// exporter writes one export.
type exporter struct {
	dir     string
	made    bool     // the directory, by us
	written []string // paths
	status  control.Status
	images  []exported
	unread  []unread
}

// runExport writes all images of the files at and below rel that can be read.
func runExport(ctx context.Context, src source, rel string, o lostOptions, stdout, stderr io.Writer) error {
	status, err := src.Status(ctx)
	if err != nil {
		return err
	}
	pending, err := src.Pending(ctx, rel)
	if err != nil {
		return err
	}
	names, err := lostNames(ctx, src, rel, len(pending) > 0)
	if err != nil {
		return err
	}
	e := &exporter{dir: o.export, status: status, images: []exported{}}
	if err := e.makeDir(); err != nil {
		return err
	}
	err = errors.Join(e.addPending(pending), e.addSalvaged(ctx, names))
	if err == nil {
		err = e.finish()
	}
	if err != nil {
		return errors.Join(e.failed(err), e.undo())
	}
	if o.json {
		err = printJSON(stdout, "exported", e.images)
	}
	fmt.Fprintf(stderr, "%s written; %s says what they are\n", count(len(e.images), "image"), quote(filepath.Join(e.dir, manifestName)))
	if o.drop {
		err = errors.Join(err, e.drop(ctx, src, stderr))
	}
	return errors.Join(err, e.tellUnread(stderr))
}

// tellUnread names the images that are not in the export.
func (e *exporter) tellUnread(stderr io.Writer) error {
	if len(e.unread) == 0 {
		return nil
	}
	for _, u := range e.unread {
		fmt.Fprintf(stderr, "not exported: the image of %s %v (%s): %s\n", quote(nameOf(u.Path, u.PathB64)), u.Range, u.Why, control.Printable(u.Error))
	}
	return &failure{fmt.Errorf("%s can't be read", count(len(e.unread), "image")),
		"all others are exported; see the disk of " + quote(e.status.State) + ": a journal.unread-NUMBER there may have them"}
}

// nameOf is the path that control.Wire made these of.
func nameOf(path string, b64 []byte) string {
	if b64 != nil {
		return string(b64)
	}
	return path
}

// lostNames is the files at and below rel that have lost ranges, by identity:
// those that have salvaged pages are among them. A file of which only a repair is
// known needs to have none.
func lostNames(ctx context.Context, src source, rel string, known bool) (map[string]string, error) {
	names := map[string]string{}
	err := src.EachLost(ctx, control.LostQuery{Path: rel}, func(r ledger.Row) error {
		names[r.File.Key()] = r.Path
		return nil
	})
	if err != nil && !(known && exitCode(err) == exitUsage) {
		return nil, err
	}
	return names, nil
}

// makeDir makes the directory, or takes one that is empty.
func (e *exporter) makeDir() error {
	err := os.Mkdir(e.dir, 0o700)
	if err == nil {
		e.made = true
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return e.failed(err)
	}
	info, err := os.Lstat(e.dir)
	if err == nil && !info.IsDir() {
		return &usageError{quote(e.dir) + " is not a directory", "give a new or an empty one with --export"}
	}
	list, err := os.ReadDir(e.dir)
	switch {
	case err != nil:
		return e.failed(err)
	case len(list) > 0:
		return &usageError{quote(e.dir) + " is not empty, and nothing is ever overwritten", "give a new or an empty directory with --export"}
	}
	return nil
}

func (e *exporter) failed(err error) error {
	return &failure{fmt.Errorf("exporting to %s: %w", quote(e.dir), err), "give a new directory on a disk with room with --export; nothing was dropped"}
}

func (e *exporter) addPending(pending []control.Pending) error {
	for _, p := range pending {
		if p.Unread != "" {
			e.unread = append(e.unread, unread{p.Why, p.File, p.Path, p.PathB64, p.Range, p.Unread})
		}
		if len(p.Image) == 0 {
			continue
		}
		x := exported{Why: p.Why, Next: p.Next, ID: p.ID, File: p.File, Path: p.Path, PathB64: p.PathB64, Time: p.Time, Range: p.Range, Missing: list(p.Missing)}
		if err := e.add(x, p.Image, p.Size); err != nil {
			return err
		}
	}
	return nil
}

// addSalvaged adds the best images of pages that are still bad.
func (e *exporter) addSalvaged(ctx context.Context, names map[string]string) error {
	return mount.EachSalvaged(e.status.State, func(im journal.Saved, unreadable error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		name, wanted := names[im.File.Key()]
		if !wanted {
			return nil
		}
		if unreadable != nil {
			u := unread{Why: salvaged, File: im.File, Range: ranges.Page(im.Page), Error: unreadable.Error()}
			u.Path, u.PathB64 = control.Wire(name)
			e.unread = append(e.unread, u)
			return nil
		}
		x := exported{Why: salvaged, Next: "nothing: reads through the mount get these bytes; overwriting the page repairs it", File: im.File, Range: ranges.Page(im.Page), Missing: list(im.Missing)}
		x.Path, x.PathB64 = control.Wire(name)
		return e.add(x, im.Data, 0)
	})
}

// add writes one image; size is that of the file, 0 if it has to be asked for.
func (e *exporter) add(x exported, data []byte, size int64) error {
	if size == 0 {
		if info, err := os.Lstat(pathOf(e.status, nameOf(x.Path, x.PathB64))); err == nil {
			size = info.Size()
		}
	}
	if size > x.Off { // else the file is not there: the whole page
		x.Len = min(x.Len, size-x.Off)
	}
	x.Name = fmt.Sprintf("%06d.page", len(e.images)+1)
	e.images = append(e.images, x)
	return e.write(x.Name, data[:x.Len])
}

// write makes a durable file that was not there.
func (e *exporter) write(name string, data []byte) error {
	path := filepath.Join(e.dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	e.written = append(e.written, path)
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// finish writes the manifest, and makes the names durable.
func (e *exporter) finish() error {
	text, err := json.MarshalIndent(manifest{
		Version: 1, FS: e.status.FS, Backing: e.status.Backing, State: e.status.State,
		Time: time.Now().UTC(), Images: e.images, Unread: e.unread,
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := e.write(manifestName, append(text, '\n')); err != nil {
		return err
	}
	for _, path := range []string{e.dir, filepath.Dir(filepath.Clean(e.dir))} {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// undo removes what was written.
func (e *exporter) undo() error {
	var errs []error
	for _, path := range e.written {
		errs = append(errs, os.Remove(path))
	}
	if e.made {
		errs = append(errs, os.Remove(e.dir))
	}
	return errors.Join(errs...)
}

// drop forgets the images of conflicts, which are in the export now. All others
// are still in use.
func (e *exporter) drop(ctx context.Context, src source, stderr io.Writer) error {
	n := 0
	for _, x := range e.images {
		if x.Why != control.Conflict {
			continue
		}
		if err := src.Drop(ctx, x.ID); err != nil {
			return err
		}
		n++
	}
	fmt.Fprintf(stderr, "%s forgotten\n", count(n, "conflict"))
	return nil
}
