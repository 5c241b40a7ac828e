package fs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// watched is a file of a mount beside its backing, without the mount: what the
// kernel would be told stays where it can be counted.
type watched struct {
	*FS
	t *testing.T
	n *inode
	f *os.File
}

func watchedFile(t *testing.T) *watched {
	t.Helper()
	f, err := os.Create(filepath.Join(newDir(t), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := &watched{FS: &FS{}, t: t, f: f}
	w.n = &inode{id: 7, kind: unix.S_IFREG, fd: int(f.Fd())}
	w.stale = stale{pages: map[uint64]*ranges.Set{}, running: true} // nobody tells the kernel
	w.write()
	w.look(w.n, w.n.fd, w.stat()) // the first sight
	w.drops(0)
	return w
}

// write changes the file, at a later mtime than before on any filesystem.
func (w *watched) write() {
	w.t.Helper()
	was := versionOf(w.stat())
	for versionOf(w.stat()).mtime == was.mtime {
		if _, err := w.f.WriteAt([]byte(time.Now().String()), 0); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *watched) stat() *unix.Statx_t {
	w.t.Helper()
	var st unix.Statx_t
	if err := statx(w.n.fd, &st); err != nil {
		w.t.Fatal(err)
	}
	return &st
}

// drops wants the kernel to have been told that many times since the last call.
func (w *watched) drops(want int) {
	w.t.Helper()
	if got := len(w.stale.pages); got != want {
		w.t.Fatalf("%d files to drop, want %d", got, want)
	}
	clear(w.stale.pages)
}

func (w *watched) own(change func()) {
	w.changing(w.n, w.n.fd)
	change()
	w.changed(w.n, w.n.fd)
}

func TestForeignChangeIsToldOnce(t *testing.T) {
	w := watchedFile(t)
	for range 3 {
		w.write()
		w.look(w.n, w.n.fd, w.stat())
		w.drops(1)
		w.look(w.n, w.n.fd, w.stat())
		w.drops(0)
	}
}

func TestOwnChangeIsNotForeign(t *testing.T) {
	w := watchedFile(t)
	before := w.stat()
	w.own(func() {
		w.write()
		w.look(w.n, w.n.fd, w.stat())
	})
	w.look(w.n, w.n.fd, before) // an answer that was overtaken
	w.look(w.n, w.n.fd, w.stat())
	if !w.unchanged(w.n, w.n.fd) {
		t.Error("an open would drop the cache")
	}
	w.drops(0)

	w.changing(w.n, w.n.fd)
	w.own(w.write) // at the same time
	w.write()
	w.look(w.n, w.n.fd, w.stat())
	w.changed(w.n, w.n.fd)
	w.look(w.n, w.n.fd, w.stat())
	w.drops(0)
}

func TestForeignChangeBetweenOwn(t *testing.T) {
	w := watchedFile(t)
	w.own(w.write)
	w.write()
	w.own(w.write)
	w.drops(1)
	w.look(w.n, w.n.fd, w.stat())
	w.drops(0)
}

func TestForeignChangeWithMtimeSetBack(t *testing.T) {
	w := watchedFile(t)
	st := w.stat()
	w.write()
	times := []unix.Timespec{{Sec: st.Atime.Sec, Nsec: int64(st.Atime.Nsec)}, {Sec: st.Mtime.Sec, Nsec: int64(st.Mtime.Nsec)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, w.f.Name(), times, 0); err != nil {
		t.Fatal(err)
	}
	if w.unchanged(w.n, w.n.fd) {
		t.Error("an open would keep the cache")
	}
	if !w.unchanged(w.n, w.n.fd) {
		t.Error("the next open would drop the cache again")
	}
}

// What the kernel writes by itself looks foreign: nothing is told as long as it has
// no pages that anybody would see.
func TestPassthroughIsNotTold(t *testing.T) {
	w := watchedFile(t)
	p := w.n.passage()
	w.write()
	w.look(w.n, w.n.fd, w.stat())
	w.drops(0)
	p.cached.Add(1)
	w.look(w.n, w.n.fd, w.stat())
	w.drops(0)
	w.write()
	w.look(w.n, w.n.fd, w.stat())
	w.drops(1)
}

func TestExclusiveIsNotWatched(t *testing.T) {
	w := watchedFile(t)
	w.config.Exclusive = true
	w.write()
	w.own(w.write)
	w.look(w.n, w.n.fd, w.stat())
	w.drops(0)
	if w.n.sight.last == versionOf(w.stat()) {
		t.Error("the file was asked for its attributes")
	}
}
