package fs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// The mounted tests serve the filesystem from a process of its own: a process
// that waits for its own mount can deadlock. It is this test binary again,
// told so by the environment; it lives until its standard input is closed.

const serveEnv = "MENDFS_FS_TEST_SERVE"

// serveConfig is what the serving process is told.
type serveConfig struct {
	Backing, Mountpoint string
	State               string
	Exclusive, ReadOnly bool
	NoAtime             bool
	FS                  string // of the backing: tmpfs, or ext4, xfs or btrfs on a loop device; the temporary directory's if empty
	Below               string // the directory of it that is served, if not the root
	User                uint32 // who serves, if not root
	MaxFds              int
	Protect             Protect
	Timeout             time.Duration
	Pmem                *fakePmem // what the backing lies on, if it is that
}

func TestMain(m *testing.M) {
	if text := os.Getenv(serveEnv); text != "" {
		if err := serve(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(text string) error {
	var c serveConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	mountpoint := c.Mountpoint
	if c.User != 0 {
		var err error
		if mountpoint, err = becomeUser(c); err != nil {
			return err
		}
	}
	root, err := openRoot(c)
	if err != nil {
		return err
	}
	engine, done, err := newEngineOn(root, c.State, c.Pmem)
	if err != nil {
		return err
	}
	f, err := New(Config{
		Root: root, Engine: engine, AttrTimeout: c.Timeout, EntryTimeout: c.Timeout,
		Exclusive: c.Exclusive, ReadOnly: c.ReadOnly, NoAtime: c.NoAtime, MaxFds: c.MaxFds, Protect: c.Protect,
	})
	if err != nil {
		return err
	}
	o := f.MountOptions()
	var panics atomic.Int64
	o.PanicHandler = func(what any) fuse.Status {
		if panics.Add(1) == 1 {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", what, debug.Stack())
		}
		return fuse.EIO
	}
	o.Name, o.FsName = "mendfstest", "mendfstest"
	if c.User == 0 {
		o.AllowOther, o.DirectMountStrict = true, true
		o.DirectMountFlags = unix.MS_MGC_VAL // suid, dev
	}
	server, err := fuse.NewServer(f, mountpoint, o)
	if err != nil {
		return err
	}
	go server.Serve() // ends with the mount
	if err := server.WaitMount(); err != nil {
		return err
	}
	if c.Protect != ProtectFull {
		if err := f.CheckPassthrough(); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	err = answer(f)
	_ = unix.Unmount(c.Mountpoint, unix.MNT_DETACH) // the test has unmounted it if all went well
	server.Wait()
	if panics.Load() > 0 {
		err = errors.Join(err, errors.New("a request handler panicked"))
	}
	return errors.Join(err, f.Close(), done())
}

func openRoot(c serveConfig) (int, error) {
	if c.User == 0 {
		return unix.OpenTree(unix.AT_FDCWD, c.Backing, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	}
	return unix.Open(c.Backing, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// becomeUser mounts for an ordinary user, as fusermount3 would, and then
// becomes that user. It gives the mountpoint in go-fuse's words.
func becomeUser(c serveConfig) (string, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	id := int(c.User)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,max_read=%d", fd, id, id, 1<<20)
	if err := unix.Mount("mendfstest", c.Mountpoint, "fuse.mendfstest", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return "", err
	}
	err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(id), syscall.Setuid(id))
	return fmt.Sprintf("/dev/fd/%d", fd), err
}

// answer does what the test says, line by line.
func answer(f *FS) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var ino uint64
		var r ranges.Range
		reply := "ok"
		switch _, err := fmt.Sscanf(lines.Text(), "invalidate %d %d %d", &ino, &r.Off, &r.Len); {
		case lines.Text() == "stats":
			text, err := json.Marshal(f.Stats())
			if err != nil {
				return err
			}
			reply = string(text)
		case lines.Text() == "listed":
			reply = strconv.FormatBool(f.engine.AnyListed())
		case err != nil:
			return err
		default:
			if err := f.Invalidate(ino, r); err != nil {
				reply = err.Error()
			}
		}
		fmt.Println(reply)
	}
	return nil
}

// newEngine is the real engine over real files, with its state in a
// directory; done closes all that belongs to it.
func newEngine(root int, state string) (engine *recovery.Engine, done func() error, err error) {
	return newEngineOn(root, state, nil)
}

func newEngineOn(root int, state string, disk *fakePmem) (engine *recovery.Engine, done func() error, err error) {
	name, err := fileid.Filesystem(root)
	if err != nil {
		return nil, nil, err
	}
	id, err := fileid.Of(root)
	if err != nil {
		return nil, nil, err
	}
	j, err := journal.Open(filepath.Join(state, "journal"), name)
	if err != nil {
		return nil, nil, err
	}
	l, err := ledger.Open(filepath.Join(state, "ledger.db"), name, id)
	if err != nil {
		return nil, nil, err
	}
	e, err := event.New(event.Options{Path: filepath.Join(state, "events.jsonl"), Human: os.Stderr})
	if err != nil {
		return nil, nil, err
	}
	config := recovery.Config{Medium: media.New(root), Journal: j, Ledger: l, Events: e, Root: root, FS: name}
	if disk != nil {
		if err := disk.configure(&config); err != nil {
			return nil, nil, err
		}
	}
	engine, err = recovery.New(config)
	if err != nil {
		return nil, nil, err
	}
	done = func() error { return errors.Join(engine.Close(), e.Close(), j.Shutdown(), l.Close()) }
	return engine, done, engine.Replay()
}
