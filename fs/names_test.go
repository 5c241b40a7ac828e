package fs

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestRemovedFilesAreLetGo removes files that the kernel has not forgotten yet:
// their blocks are free when unlink and rename have returned, or when who has
// them open closes them, and not at the FORGET that comes some time later.
func TestRemovedFilesAreLetGo(t *testing.T) {
	for name, remove := range map[string]func(f *FS) fuse.Status{
		"unlink": func(f *FS) fuse.Status {
			return f.Unlink(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f")
		},
		"rename over": func(f *FS) fuse.Status {
			return f.Rename(nil, &fuse.RenameIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Newdir: fuse.FUSE_ROOT_ID}, "other", "f")
		},
	} {
		for _, open := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", open"}[open], func(t *testing.T) {
				f, dir := unmounted(t, Config{EntryTimeout: time.Hour, AttrTimeout: time.Hour})
				write(t, filepath.Join(dir, "f"), "text")
				write(t, filepath.Join(dir, "other"), "other")
				var known fuse.EntryOut
				if st := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f", &known); !st.Ok() {
					t.Fatal(st)
				}
				before := f.Stats().Fds
				var opened fuse.OpenOut
				in := fuse.OpenIn{InHeader: fuse.InHeader{NodeId: known.NodeId}, Flags: unix.O_RDWR}
				if open {
					if st := f.Open(nil, &in, &opened); !st.Ok() {
						t.Fatal(st)
					}
				}
				if st := remove(f); !st.Ok() {
					t.Fatal(st)
				}
				if open {
					var again fuse.OpenOut
					if st := f.Open(nil, &in, &again); !st.Ok() { // by way of /proc
						t.Fatalf("the open file can't be opened again: %v", st)
					}
					f.Release(nil, &fuse.ReleaseIn{Fh: again.Fh})
					f.Release(nil, &fuse.ReleaseIn{Fh: opened.Fh})
				}
				if fds := f.Stats().Fds; fds != before-1 {
					t.Errorf("%d descriptors, want one less than the %d before", fds, before)
				}
				var attr fuse.AttrOut
				if st := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: known.NodeId}}, &attr); !st.Ok() || attr.Nlink != 0 || attr.Size != 4 {
					t.Errorf("%v, %d links, %d bytes", st, attr.Nlink, attr.Size)
				}
				inodes := f.Stats().Inodes
				f.Forget(known.NodeId, 1)
				if got := f.Stats().Inodes; got != inodes-1 {
					t.Errorf("%d inodes after the FORGET, %d before", got, inodes)
				}
			})
		}
	}
}

// TestFilesWithOtherNamesStay removes one of two names.
func TestFilesWithOtherNamesStay(t *testing.T) {
	f, dir := unmounted(t, Config{EntryTimeout: time.Hour, AttrTimeout: time.Hour})
	write(t, filepath.Join(dir, "f"), "text")
	if err := unix.Link(filepath.Join(dir, "f"), filepath.Join(dir, "g")); err != nil {
		t.Fatal(err)
	}
	var known fuse.EntryOut
	if st := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f", &known); !st.Ok() {
		t.Fatal(st)
	}
	if st := f.Unlink(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f"); !st.Ok() {
		t.Fatal(st)
	}
	var opened fuse.OpenOut
	if st := f.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: known.NodeId}}, &opened); !st.Ok() {
		t.Fatal(st)
	}
	f.Release(nil, &fuse.ReleaseIn{Fh: opened.Fh})
}
