package mount

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mendfs/mendfs/fs"
	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/locate"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// watcher follows the list of media errors: what comes onto it is told before
// anybody reads it, known to the engine, and, with --repair eager, repaired.
// One goroutine does all of it, outside of any request.
type watcher struct {
	list   poisonList
	root   int // the backing directory
	fs     outOfBand
	events *event.Log
	name   string // fileid.Filesystem, for events
	eager  bool
	// readOnly reports whether the mount was made read-only meanwhile.
	readOnly func() bool
	warn     func(format string, args ...any)

	asked chan chan struct{} // look now, and close it
	ended chan struct{}      // closed when the goroutine has ended

	// The goroutine's own:
	files     map[string]listedFile // what the engine was told, by identity
	elsewhere map[string]bool       // what was told of all else
	barred    bool                  // what is to be repaired waits for the mount to be writable again
	unread    bool                  // said that the list can't be read
	partial   bool                  // said that the list is not complete
	untold    bool                  // said that the engine can't be told
	pause     time.Duration         // until the list is read again, at least
	tries     map[string]try        // of repairs, by identity
}

// outOfBand is what package fs does to files that nobody asked for (fs.FS).
type outOfBand interface {
	Detected(id fileid.ID, path string, list recovery.Listed) error
	Reinitialize(id fileid.ID, path string, pages []ranges.Range) error
}

var _ outOfBand = (*fs.FS)(nil)

// try is a repair that came to nothing.
type try struct {
	next time.Time
	told string // what was said of it
}

const (
	// idle is the part of the time, 1 of so much, that finding files may take.
	idle = 10
	// retryAfter is how long what has failed waits.
	retryAfter = time.Minute
)

// watch begins to follow the list, if there is one.
func (m *Mount) watch(*target) error {
	if m.list == nil {
		if m.config.eager {
			m.config.warn("repair eager: nobody keeps a list of media errors of %s, so poison is repaired when it is overwritten, as without it", m.backing)
		}
		return nil
	}
	w := &watcher{
		list: m.list, root: m.root, fs: m.fs, events: m.events, name: m.state.meta.FS, eager: m.config.eager && !m.config.ReadOnly, warn: m.config.warn,
		readOnly: m.isReadOnlyNow,
		asked:    make(chan chan struct{}), ended: make(chan struct{}),
		files: map[string]listedFile{}, elsewhere: map[string]bool{}, tries: map[string]try{},
	}
	ctx, stop := context.WithCancel(context.Background())
	go w.run(ctx)
	m.watcher = w
	m.onClose(func() error {
		stop()
		<-w.ended
		return nil
	})
	return nil
}

// lookNow returns when the list, as it is now, has been looked at. It may be nil.
func (w *watcher) lookNow() {
	if w == nil {
		return
	}
	done := make(chan struct{})
	select {
	case w.asked <- done:
	case <-w.ended:
		return
	}
	select {
	case <-done:
	case <-w.ended:
	}
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.ended)
	changes := w.list.changes(ctx)
	var done chan struct{}
	for {
		w.look(ctx)
		if done != nil {
			close(done)
			done = nil
		}
		w.repair(ctx)
		if !wait(ctx, w.pause) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case done = <-w.asked:
		case <-changes:
		case <-w.retry():
		}
	}
}

// wait is false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// retry is when something is to be tried again that has failed; never if nothing has.
func (w *watcher) retry() <-chan time.Time {
	switch {
	case w.unread, w.barred, w.untold:
		return time.After(retryAfter)
	case len(w.tries) == 0:
		return nil
	}
	next := slices.MinFunc(slices.Collect(maps.Values(w.tries)), func(a, b try) int { return a.next.Compare(b.next) })
	return time.After(time.Until(next.next))
}

// look reads the list and tells what has changed.
func (w *watcher) look(ctx context.Context) {
	began := time.Now()
	now, err := w.list.read(ctx)
	w.pause = time.Since(began) * (idle - 1)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		if !w.unread {
			w.warn("the list of media errors can't be had: %v; poison is found when it is read, until the list is back", err)
		}
		w.unread = true
		return
	}
	w.unread = false
	if !now.complete && !w.partial {
		w.warn("the kernel's list of media errors is full, and may lack some: mendfs scan --read finds them")
	}
	w.partial = !now.complete
	w.tellFiles(ctx, now.files)
	w.tellElsewhere(now)
}

// tellFiles lets the engine know of the files whose list is another than it was.
func (w *watcher) tellFiles(ctx context.Context, now []listedFile) {
	was, gone := w.files, maps.Clone(w.files)
	w.files = map[string]listedFile{}
	var changed []*listedFile
	for _, f := range now {
		key := f.id.Key()
		delete(gone, key)
		if before := was[key]; before.list.Equal(f.list) {
			w.files[key] = before
			continue
		}
		changed = append(changed, &f)
	}
	name(ctx, w.root, changed...)
	for _, f := range gone {
		f.list = recovery.Listed{}
		changed = append(changed, &f)
	}
	w.tell(changed, was)
}

// tell lets the engine know of the changed files. Of those that it can't be told of the
// next look tries again.
func (w *watcher) tell(changed []*listedFile, was map[string]listedFile) {
	untold := false
	for _, f := range changed {
		key := f.id.Key()
		delete(w.tries, key)
		err := w.fs.Detected(f.id, f.path, f.list)
		if err == nil {
			if len(f.list.Pieces) > 0 {
				w.files[key] = *f
			}
			continue
		}
		if before, told := was[key]; told {
			w.files[key] = before
		}
		if !w.untold && !untold {
			w.warn("poison in %s is known, and can't be told of: %v; it is tried again each minute", f.name(), err)
		}
		untold = true
	}
	w.untold = untold
}

// tellElsewhere emits an event for each use that new poison outside of files has.
func (w *watcher) tellElsewhere(now listing) {
	was := w.elsewhere
	w.elsewhere = map[string]bool{}
	news := map[string][]locate.Place{}
	for _, p := range now.elsewhere {
		what := fmt.Sprint(p.Device, p.Kind, p.Path)
		w.elsewhere[what] = true
		if !was[what] {
			use := p.Kind.String() + " " + p.Path
			news[use] = append(news[use], p)
		}
	}
	for _, use := range slices.Sorted(maps.Keys(news)) {
		places := news[use]
		ev := event.Event{
			Event: event.Detected, FS: w.name, Path: places[0].Path, Ino: places[0].File.Ino, Device: now.device,
			Offset: places[0].Device.Off, Length: places[0].Device.Len, Source: "kernel", Detected: "badblocks",
		}
		ev.Action, ev.Next = UseOf(places[0], now.device)
		if len(places) > 1 {
			ev.Action += fmt.Sprintf(", and in %d more places", len(places)-1)
		}
		w.events.Emit(ev)
	}
}

// UseOf says what bad bytes are used for that are no data of a file, and what to do.
func UseOf(p locate.Place, device string) (use, next string) {
	switch {
	case p.Kind == pmem.Free:
		return "in free space", "nothing is lost; the kernel clears it when a file gets the space"
	case p.Kind == pmem.Metadata && p.Path != "":
		return "in a directory, or in what the filesystem keeps of a file", "copy what can be read of it, unmount, and check the filesystem (e2fsck -f or xfs_repair " + device + ")"
	case p.Kind == pmem.Metadata:
		return "in the filesystem's own data", "back up the files, unmount, and check the filesystem (e2fsck -f or xfs_repair " + device + ")"
	}
	return "in use, but by no file that was found", "scan the root of the filesystem, as root: it may be another directory's, a removed file's that is still open, or the filesystem's own"
}

// repair clears what is listed in files, where that is wanted.
func (w *watcher) repair(ctx context.Context) {
	w.barred = false
	if !w.eager {
		return
	}
	for key, f := range w.files {
		if ctx.Err() != nil {
			return
		}
		was := w.tries[key]
		if time.Now().Before(was.next) {
			continue
		}
		if w.barred = w.readOnly(); w.barred {
			return
		}
		err := w.fs.Reinitialize(f.id, f.path, f.list.Pieces)
		w.tries[key] = try{next: time.Now().Add(retryAfter)} // what is listed still is none of the file's data
		switch {
		case err == nil, errors.Is(err, fileid.ErrGone):
		case errors.Is(err, recovery.ErrShared):
			w.tries[key] = try{next: time.Now().Add(simulatedInterval)}
		default:
			if text := err.Error(); text != was.told {
				w.warn("poison in %s can't be repaired now, and is tried again each minute: %s", f.name(), text)
			}
			w.tries[key] = try{next: time.Now().Add(retryAfter), told: err.Error()}
		}
	}
}
