package media

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestControlFindsLaterFiles: the only other file there was is poisoned throughout, and
// one that came later is not.
func TestControlFindsLaterFiles(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	dir, root := t.TempDir(), &gofs.Inode{}
	add := func(ctx context.Context, name string, bad ...ranges.Range) {
		f := &flawed{data: bytes.Repeat([]byte{'x'}, page), bad: ranges.Of(bad...), sullen: true, direct: true}
		root.AddChild(name, root.NewPersistentInode(ctx, f, gofs.StableAttr{Mode: unix.S_IFREG}), false)
	}
	server, err := gofs.Mount(dir, root, &gofs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true},
		OnAdd: func(ctx context.Context) {
			add(ctx, "bad", ranges.Page(0))
			add(ctx, "other", ranges.Page(0))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	top, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	file, err := os.Open(filepath.Join(dir, "bad"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	m := New(int(top.Fd()))
	defer m.Close()
	f := m.Open(int(file.Fd()))
	if err := f.Control(ranges.Of(ranges.Page(0))); err == nil {
		t.Fatal("nothing can be read, and the control read worked")
	}
	add(context.Background(), "later")
	if err := f.Control(ranges.Of(ranges.Page(0))); err != nil {
		t.Errorf("a file that came later can be read: %v", err)
	}
}
