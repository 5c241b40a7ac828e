package fs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestRoomOfRemovedFiles has a file removed that the kernel has not forgotten, and
// may have open: who finds no room meanwhile tries again when the file is gone.
func TestRoomOfRemovedFiles(t *testing.T) {
	for name, remove := range map[string]func(f *FS) fuse.Status{
		"unlink": func(f *FS) fuse.Status {
			return f.Unlink(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f")
		},
		"rename over": func(f *FS) fuse.Status {
			return f.Rename(nil, &fuse.RenameIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Newdir: fuse.FUSE_ROOT_ID}, "other", "f")
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, known := removedFile(t)
			if st := remove(f); !st.Ok() {
				t.Fatal(st)
			}
			var opened fuse.OpenOut // it was found before it was removed
			if st := f.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: known}}, &opened); !st.Ok() {
				t.Fatal(st)
			}
			if tries := triesFor(f, nil); tries != 2 {
				t.Errorf("open: tried %d times, want 2: it could have been closed", tries)
			}
			f.Release(nil, &fuse.ReleaseIn{Fh: opened.Fh})
			if tries := triesFor(f, func() { f.Forget(known, 1) }); tries != 2 {
				t.Errorf("tried %d times, want 2", tries)
			}
			if f.table.awaitOrphans(true) {
				t.Error("the file has gone, and is still waited for")
			}
			if tries := triesFor(f, nil); tries != 1 {
				t.Errorf("tried %d times with nothing to wait for, want 1", tries)
			}
		})
	}
}

// TestHeldOrphanIsWaitedForOnce: one that does not go, since somebody holds it by
// O_PATH, does not delay each statfs.
func TestHeldOrphanIsWaitedForOnce(t *testing.T) {
	f, _ := removedFile(t)
	if st := f.Unlink(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f"); !st.Ok() {
		t.Fatal(st)
	}
	if !f.table.awaitOrphans(false) {
		t.Error("not waited for at all")
	}
	if f.table.awaitOrphans(false) {
		t.Error("waited for again")
	}
}

// TestOtherNamesAreNoOrphans removes one of two names.
func TestOtherNamesAreNoOrphans(t *testing.T) {
	f, _ := removedFile(t)
	root, err := f.table.acquire(fuse.FUSE_ROOT_ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.table.release(root)
	if err := unix.Linkat(root.fd, "f", root.fd, "g", 0); err != nil {
		t.Fatal(err)
	}
	if st := f.Unlink(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f"); !st.Ok() {
		t.Fatal(st)
	}
	if f.table.awaitOrphans(true) {
		t.Error("waited for a file that has a name")
	}
}

// TestNamesRemovedAtOnce: who removes one of two names sees the other, and so does who
// removes that.
func TestNamesRemovedAtOnce(t *testing.T) {
	f, known := removedFile(t)
	root, err := f.table.acquire(fuse.FUSE_ROOT_ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.table.release(root)
	if err := unix.Linkat(root.fd, "f", root.fd, "g", 0); err != nil {
		t.Fatal(err)
	}
	both := []removal{removalOf(root.fd, "f"), removalOf(root.fd, "g")}
	for i, name := range []string{"f", "g"} {
		if err := unix.Unlinkat(root.fd, name, 0); err != nil {
			t.Fatal(err)
		}
		f.table.orphan(both[i])
	}
	asked := 0
	f.table.freeing = func(freed) error { asked++; return nil }
	f.Forget(known, 1)
	if asked != 1 {
		t.Errorf("what is poisoned in the file was looked for %d times, want once", asked)
	}
}

// removedFile is a filesystem with a file f, to be removed, that the kernel knows by
// the id known.
func removedFile(t *testing.T) (f *FS, known uint64) {
	t.Helper()
	f, dir := unmounted(t, Config{EntryTimeout: time.Hour, AttrTimeout: time.Hour})
	write(t, filepath.Join(dir, "f"), "text")
	write(t, filepath.Join(dir, "other"), "other")
	var out fuse.EntryOut
	if st := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f", &out); !st.Ok() {
		t.Fatal(st)
	}
	return f, out.NodeId
}

// triesFor is how often withRoom tries what never finds room; meanwhile (nil:
// nothing) happens after the first time.
func triesFor(f *FS, meanwhile func()) (tries int) {
	f.withRoom(func() fuse.Status {
		if tries++; tries == 1 && meanwhile != nil {
			time.AfterFunc(3*time.Millisecond, meanwhile)
		}
		return fuse.Status(unix.ENOSPC)
	})
	return tries
}

// A file without a name that is open when the mount ends is seen before it is freed,
// even if it had no descriptor besides.
func TestOpenToTheEndWithoutAName(t *testing.T) {
	asked := 0
	t.Cleanup(func() { // after Close
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
	})
	f, dir := unmounted(t, Config{})
	if f.table.mount < 0 {
		asked = 1
		t.Skip("SKIP: no descriptor is closed early where handles can't be used")
	}
	f.table.freeing = func(freed) error { asked++; return nil }
	name := filepath.Join(dir, "f")
	write(t, name, "x")
	path := open(t, name, unix.O_PATH)
	var st unix.Statx_t
	if err := statx(path, &st); err != nil {
		t.Fatal(err)
	}
	n := f.table.enter(path, keyOf(&st), unix.S_IFREG, false)
	f.handles.add(&handle{n: n, fd: open(t, name, unix.O_RDWR)})
	f.table.hold(n)
	f.table.release(n)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	f.table.neverNamed(n.id)
	f.table.mu.Lock()
	f.table.shelve(n)
	shelved := n.fd < 0
	f.table.unlock()
	if !shelved {
		t.Error("it keeps its descriptor")
	}
}
