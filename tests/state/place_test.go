package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// What is missing is made, up to the parents, for nobody else to see, and announced.
func TestMissingIsMade(t *testing.T) {
	harness.Need(t, harness.Root)
	state := filepath.Join(harness.Dir(t), "above/more/state")
	m := harness.New(t, harness.Config{State: state})
	if !strings.Contains(said(t, m), "new state directory "+state) {
		t.Errorf("it is not announced: %s", said(t, m))
	}
	for _, dir := range []string{state, filepath.Dir(state)} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	m.Restart()
	if strings.Contains(said(t, m), "new state directory") {
		t.Errorf("it is announced again: %s", said(t, m))
	}
}

// On a read-only filesystem nothing can be mounted with it, and all can be asked.
func TestReadOnlyFilesystem(t *testing.T) {
	v := newVolume(t, "size=8m")
	m := harness.New(t, harness.Config{State: v.path("s"), Flags: []string{"--simulate", "dax"}})
	data := m.File("f", 1, 2*page)
	m.Inject("f", rng{Off: 0, Len: 64})
	m.Check("f", data, rng{Off: 0, Len: sector})
	m.Stop()
	v.remount(unix.MS_RDONLY)
	defer v.remount(0)
	refused(t, exitOperational, v.path("new"), "read-only file system", "read-write", "--state")
	refusedFor(t, exitOperational, m.Backing, m.At, m.State, "read-only file system", "read-write", "--state")
	for verb, want := range map[string]int{"status": exitOK, "lost": exitLossLeft, "events": exitOK} {
		if r := harness.Mendfs(t, verb, "--state", m.State); r.Exit != want || r.Stdout == "" {
			t.Errorf("%s: exit %d, %q, %q", verb, r.Exit, r.Stdout, r.Stderr)
		}
	}
}

// A symbolic link may lead to the directory's parent, if it is root's or one's own,
// but not be the directory.
func TestSymbolicLinks(t *testing.T) {
	harness.Need(t, harness.Root)
	dir := harness.Dir(t)
	real, link := mkdir(t, dir, "real"), filepath.Join(dir, "link")
	theirs := filepath.Join(dir, "theirs")
	err := errors.Join(os.Symlink(real, link), os.Symlink(real, theirs), os.Lchown(theirs, 65534, 65534))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, exitUsage, theirs+"/s", "belongs to uid 65534")
	refused(t, exitUsage, link, "symbolic link")
	if list, err := os.ReadDir(real); err != nil || len(list) > 0 {
		t.Errorf("made there: %v, %v", list, err)
	}
	m := harness.New(t, harness.Config{State: link + "/s"})
	if got := m.Status().State; got != real+"/s" {
		t.Errorf("the state directory is called %s, and is %s", got, real+"/s")
	}
}

// lockless is a filesystem without flock(2), such as a network filesystem without a
// lock server.
type lockless struct {
	*gofs.LoopbackNode
	errno syscall.Errno
}

var _ gofs.NodeSetlker = (*lockless)(nil)

func (n *lockless) WrapChild(_ context.Context, ops gofs.InodeEmbedder) gofs.InodeEmbedder {
	return &lockless{ops.(*gofs.LoopbackNode), n.errno}
}

func (n *lockless) Setlk(context.Context, gofs.FileHandle, uint64, *fuse.FileLock, uint32) syscall.Errno {
	return n.errno
}

func (n *lockless) Setlkw(context.Context, gofs.FileHandle, uint64, *fuse.FileLock, uint32) syscall.Errno {
	return n.errno
}

func TestFilesystemWithoutLocks(t *testing.T) {
	harness.Need(t, harness.Root, harness.FUSE)
	for _, errno := range []syscall.Errno{unix.ENOLCK, unix.EOPNOTSUPP} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			at := mkdir(t, harness.Dir(t), "n")
			root, err := gofs.NewLoopbackRoot(mkdir(t, harness.Dir(t), "files"))
			if err != nil {
				t.Fatal(err)
			}
			// Only other processes use it: this one would wait for itself.
			server, err := gofs.Mount(at, &lockless{root.(*gofs.LoopbackNode), errno}, &gofs.Options{MountOptions: fuse.MountOptions{
				EnableLocks: true, DirectMountStrict: true, Name: "lockless", DisabledCapabilities: fuse.CAP_PASSTHROUGH,
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := server.Unmount(); err != nil {
					t.Error(err)
				}
			}()
			refused(t, exitOperational, at+"/s", "can't be locked", "local filesystem")
		})
	}
}

// limited has the mounts of this test made by a shell that runs the script first.
func limited(t *testing.T, script string) {
	t.Helper()
	wrapper := filepath.Join(harness.Dir(t), "mendfs")
	text := fmt.Sprintf("#!/bin/sh\n%s\n", strings.ReplaceAll(script, "MENDFS", "exec '"+os.Getenv("MENDFS_BIN")+"' \"$@\""))
	if err := os.WriteFile(wrapper, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MENDFS_BIN", wrapper)
}

// The limit of file sizes of who mounts limits neither files nor records, if it can be
// lifted.
func TestFileSizeLimitIsLifted(t *testing.T) {
	harness.Need(t, harness.Root)
	limited(t, "ulimit -S -f 64; MENDFS")
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 100*page)
	m.Inject("f", rng{Off: 0, Len: 64})
	data = m.Overwrite("f", data, []byte("part of a page"), 100)
	m.Check("f", data, rng{Off: 0, Len: sector}.Intersect(rng{Off: 0, Len: 100}), rng{Off: 114, Len: sector - 114})
	if strings.Contains(said(t, m), "ulimit") {
		t.Errorf("it says: %s", said(t, m))
	}
}

// Where it can't be lifted, that is said, reads go on, and repairs that need more are
// refused.
func TestFileSizeLimitThatStays(t *testing.T) {
	harness.Need(t, harness.Root, harness.Program("setpriv"))
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 4*page)
	m.Inject("f", rng{Off: 0, Len: 64})
	m.Stop()
	limited(t, "ulimit -f 256; set -- --bounding-set=-sys_resource '"+os.Getenv("MENDFS_BIN")+"' \"$@\"; exec setpriv \"$@\"")
	m.Start()
	if !strings.Contains(said(t, m), "ulimit -f") {
		t.Errorf("it does not say so: %s", said(t, m))
	}
	m.Check("f", data, rng{Off: 0, Len: sector})
	if err := m.WriteAt("f", []byte("x"), 3000); !errors.Is(err, unix.EIO) {
		t.Errorf("a repair for which the journal has no room: %v", err)
	}
	m.Check("f", data, rng{Off: 0, Len: sector})
}
