package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/locate"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// scene is a watcher over a list that the test writes, and files that note what is
// done to them.
type scene struct {
	t    *testing.T
	list listing
	err  error
	say  []string // what was warned of
	done []string // to files
	fail error    // of repairs
	deaf error    // of being told
	ro   bool     // the mount is read-only
	log  string
	w    *watcher
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, log: filepath.Join(t.TempDir(), "events.jsonl"), list: listing{complete: true, device: "/dev/pmem7"}}
	events, err := event.New(event.Options{Path: s.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = events.Close() }) // told closes it earlier
	root, err := unix.Open(t.TempDir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(root) }) // only looked into
	s.w = &watcher{list: s, root: root, fs: s, events: events, warn: func(format string, args ...any) {
		s.say = append(s.say, fmt.Sprintf(format, args...))
	}, readOnly: func() bool { return s.ro }, files: map[string]listedFile{}, elsewhere: map[string]bool{}, tries: map[string]try{}}
	return s
}

func (s *scene) changes(context.Context) <-chan struct{}    { return nil }
func (s *scene) find(context.Context, int) (listing, error) { return s.list, s.err }
func (s *scene) read(context.Context) (listing, error)      { return s.list, s.err }
func (s *scene) Detected(_ fileid.ID, path string, list recovery.Listed) error {
	s.done = append(s.done, fmt.Sprint("detected ", path, " ", len(list.Pieces)))
	return s.deaf
}
func (s *scene) Reinitialize(_ fileid.ID, path string, pages []ranges.Range) error {
	s.done = append(s.done, fmt.Sprint("reinitialize ", path, " ", pages))
	return s.fail
}

func (s *scene) has(names ...string) {
	s.list.files = nil
	for i, name := range names {
		s.list.files = append(s.list.files, listedFile{
			id: fileid.ID{Ino: uint64(i) + 10}, path: name, list: recovery.Listed{Pieces: []ranges.Range{{Off: 512, Len: 512}}},
		})
	}
}

// look looks once, and says what that has done.
func (s *scene) look() []string {
	s.done = nil
	s.w.look(context.Background())
	s.w.repair(context.Background())
	return s.done
}

func (s *scene) wants(what string, got []string, want ...string) {
	s.t.Helper()
	if !slices.Equal(got, want) {
		s.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// told is the events, in words; no event follows.
func (s *scene) told() []string {
	s.t.Helper()
	if err := s.w.events.Close(); err != nil {
		s.t.Fatal(err)
	}
	text, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func TestWatchTellsChangesOnly(t *testing.T) {
	s := newScene(t)
	s.has("a", "b")
	s.wants("at first", s.look(), "detected a 1", "detected b 1")
	s.wants("again", s.look())
	s.has("a")
	s.wants("one less", s.look(), "detected b 0")
	s.has()
	s.wants("none left", s.look(), "detected a 0")
	if len(s.say) > 0 {
		t.Errorf("said %q", s.say)
	}
}

// What the engine could not be told is told again until it is, additions or not.
func TestWatchTellsAgain(t *testing.T) {
	s := newScene(t)
	s.deaf = unix.EIO
	s.has("a", "b")
	s.wants("that fails", s.look(), "detected a 1", "detected b 1")
	s.wants("again", s.look(), "detected a 1", "detected b 1")
	if s.w.retry() == nil {
		t.Error("it is not tried again by itself")
	}
	s.deaf = nil
	s.wants("that works", s.look(), "detected a 1", "detected b 1")
	s.wants("told", s.look())
	if s.w.retry() != nil {
		t.Error("it is told, and tried again")
	}
	s.deaf = unix.EIO
	s.has("a")
	s.wants("one less, that fails", s.look(), "detected b 0")
	s.deaf = nil
	s.wants("one less", s.look(), "detected b 0")
	s.wants("told", s.look())
	if len(s.say) != 2 {
		t.Errorf("said %q", s.say)
	}
}

func TestWatchSaysOnceThatTheListIsGone(t *testing.T) {
	s := newScene(t)
	s.has("a")
	s.look()
	for _, s.err = range []error{unix.ENODEV, unix.ENOENT, unix.EIO} {
		s.wants("without a list", s.look())
	}
	if len(s.say) != 1 || !strings.Contains(s.say[0], "no such device") {
		t.Errorf("said %q", s.say)
	}
	if s.w.retry() == nil {
		t.Error("it is not tried again by itself")
	}
	s.err = nil
	s.wants("with the list again", s.look())
	s.list.complete = false
	s.look()
	s.look()
	if len(s.say) != 2 || !strings.Contains(s.say[1], "full") {
		t.Errorf("of a list that was cut it said %q", s.say)
	}
}

func TestWatchTellsUsesApart(t *testing.T) {
	s := newScene(t)
	place := func(kind pmem.Kind, off int64) locate.Place {
		return locate.Place{Kind: kind, Device: ranges.Range{Off: off, Len: 512}}
	}
	s.list.elsewhere = []locate.Place{
		place(pmem.Free, 4096), place(pmem.Free, 8192), place(pmem.Metadata, 0), place(pmem.Unknown, 1<<20),
	}
	s.look()
	s.look()
	s.list.elsewhere = append(s.list.elsewhere, place(pmem.Free, 1<<16))
	s.look()
	got := s.told()
	if len(got) != 4 {
		t.Fatalf("%d events, want 4: %q", len(got), got)
	}
	for i, want := range []string{"in free space, and in 1 more places", "the filesystem's own data", "by no file that was found", `"offset":65536`} {
		if !strings.Contains(got[i], want) || !strings.Contains(got[i], `"device":"/dev/pmem7"`) || !strings.Contains(got[i], `"next":"`) {
			t.Errorf("event %d is %s, want %s in it", i, got[i], want)
		}
	}
}

func TestWatchRepairsEagerly(t *testing.T) {
	s := newScene(t)
	s.has("a")
	s.wants("not asked to repair", s.look(), "detected a 1")
	s.w.eager = true
	s.wants("asked to", s.look(), "reinitialize a [[512 +512)]")
	s.wants("done, and listed still", s.look())
	s.has("a", "b")
	s.wants("more", s.look(), "detected b 1", "reinitialize b [[512 +512)]")
}

func TestWatchSaysOnceThatARepairFails(t *testing.T) {
	s := newScene(t)
	s.w.eager, s.fail = true, errors.New("the memory refuses")
	s.has("a")
	s.wants("at first", s.look(), "detected a 1", "reinitialize a [[512 +512)]")
	s.wants("at once again", s.look())
	for range 3 {
		for key, was := range s.w.tries {
			was.next = was.next.Add(-retryAfter)
			s.w.tries[key] = was
		}
		s.wants("later", s.look(), "reinitialize a [[512 +512)]")
	}
	if len(s.say) != 1 || !strings.Contains(s.say[0], "the memory refuses") {
		t.Errorf("said %q", s.say)
	}
	if s.w.retry() == nil {
		t.Error("it is not tried again by itself")
	}
}

// A file that programs have open past mendfs is no failure, only not yet possible.
func TestWatchWaitsForSharedFiles(t *testing.T) {
	s := newScene(t)
	s.w.eager, s.fail = true, recovery.ErrShared
	s.has("a")
	s.look()
	if len(s.say) > 0 {
		t.Errorf("said %q", s.say)
	}
	if s.w.retry() == nil {
		t.Error("it is not tried again by itself")
	}
}

// What a list has less needs no walk, and what it has left stays where it was.
func TestListingStill(t *testing.T) {
	on := func(offs ...int64) (l recovery.Listed) {
		for _, off := range offs {
			l.Pieces = append(l.Pieces, ranges.Range{Off: off + 1<<30, Len: 512})
			l.On = append(l.On, recovery.OnDevice{Range: ranges.Range{Off: off, Len: 512}})
		}
		return l
	}
	all := listing{
		files:     []listedFile{{path: "a", list: on(0, 4096)}, {path: "b", list: on(8192)}},
		elsewhere: []locate.Place{{Device: ranges.Range{Off: 1 << 20, Len: 512}}, {Device: ranges.Range{Off: 2 << 20, Len: 512}}},
	}
	left := all.still(ranges.Of(ranges.Range{Off: 4096, Len: 512}, ranges.Range{Off: 2 << 20, Len: 512}))
	if len(left.files) != 1 || left.files[0].path != "a" || !left.files[0].list.Equal(on(4096)) {
		t.Errorf("files left: %+v", left.files)
	}
	if len(left.elsewhere) != 1 || left.elsewhere[0].Device.Off != 2<<20 {
		t.Errorf("left elsewhere: %+v", left.elsewhere)
	}
	if !all.files[0].list.Equal(on(0, 4096)) {
		t.Error("the listing itself has changed")
	}
}

// A mount that was made read-only repairs nothing until it can be written again.
func TestWatchRepairsNothingWhileReadOnly(t *testing.T) {
	s := newScene(t)
	s.w.eager, s.ro = true, true
	s.has("a")
	s.wants("read-only", s.look(), "detected a 1")
	s.wants("read-only still", s.look())
	if s.w.retry() == nil {
		t.Error("it is not tried again by itself")
	}
	s.ro = false
	s.wants("writable again", s.look(), "reinitialize a [[512 +512)]")
	s.wants("repaired", s.look())
}

// A file that has another name than the list knows is told by that; where neither the
// kernel nor a walk can find one, it has none, and may be in any directory.
// (TestNamesAfterReboot in tests/state has the walk find one.)
func TestNamesOfListedFiles(t *testing.T) {
	s := newScene(t)
	dir, err := os.Readlink(fmt.Sprint("/proc/self/fd/", s.w.root))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sub", "f")
	if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o777), os.WriteFile(file, nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(file, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	id, err := fileid.Of(fd)
	if err != nil {
		t.Fatal(err)
	}
	f := listedFile{id: id, path: "before"}
	name(t.Context(), s.w.root, &f)
	if f.path != "sub/f" {
		t.Errorf("found as %q", f.path)
	}
	f.path, f.id.Handle = "before", "" // as without handles
	ended, end := context.WithCancel(t.Context())
	end()
	name(ended, s.w.root, &f)
	if f.path != "" || f.name() != id.String() {
		t.Errorf("with a walk that was broken off: %q, %q", f.path, f.name())
	}
	f.list.Pieces = []ranges.Range{{Off: 512, Len: 512}}
	places := listing{files: []listedFile{f}}.scan("other", "simulated").Places
	if len(places) != 1 || places[0].Ino != id.Ino || places[0].Next == "" {
		t.Errorf("a scan of a directory has %+v", places)
	}
}
