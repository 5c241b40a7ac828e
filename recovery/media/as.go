package media

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ext4 and f2fs keep blocks in reserve for root: for whoever has fsuid 0
// (ext4_has_free_clusters, Linux 6.18; TestReservedBlocks) or
// CAP_SYS_RESOURCE. What a daemon that runs as root writes for others must not
// take them. Changing the fsuid of a thread for a write and back costs some
// microseconds, about a third of a small write through FUSE, so it is done
// only where a filesystem comes close to its reserve.

// Nobody is the uid on whose behalf is written what nobody is known to have
// asked for.
const Nobody = 65534

// As runs call as one whose claim to free space is that of uid, if the daemon
// can do that: a user namespace may have no such uid, but then its root has no
// claim to the reserve either (TestAsInAUserNamespace). Everything else about the daemon's rights stays. The call must
// make no thread or file of its own. Uid 0 is the daemon itself.
func As(uid uint32, call func() error) error {
	if uid == 0 || !isPrivileged() {
		return call()
	}
	done := make(chan error, 1)
	go func() { // ends with the call
		runtime.LockOSThread()
		// Without an unlock the thread ends with its goroutine: nobody runs on
		// one that could not be restored.
		own, err := getCaps()
		if err != nil {
			done <- err
			return
		}
		if err = own.become(uid); err == nil || errors.Is(err, errNoUser) {
			err = call()
		}
		done <- err
		if own.restore() == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-done
}

// isPrivileged reports whether this thread's rights are more than its callers',
// and may be given up for a while.
func isPrivileged() bool {
	c, err := getCaps()
	return err == nil && unix.Geteuid() == 0 && c.has(unix.CAP_SETUID)
}

// caps are the capabilities of a thread.
type caps [2]unix.CapUserData

func getCaps() (c caps, err error) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&h, &c[0]); err != nil {
		return c, fmt.Errorf("capget: %w", err)
	}
	return c, nil
}

func (c *caps) set() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&h, &c[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

func (c *caps) has(n int) bool { return c[n/32].Effective&(1<<(n%32)) != 0 }

// become gives the thread, whose capabilities are c, the fsuid uid, and takes
// CAP_SYS_RESOURCE from it. The capabilities that go with fsuid 0 stay: CAP_FSETID
// among them, without which a writeback would clear setuid bits.
func (c caps) become(uid uint32) error {
	if err := setFsuid(uid); err != nil {
		return err
	}
	c[unix.CAP_SYS_RESOURCE/32].Effective &^= 1 << (unix.CAP_SYS_RESOURCE % 32)
	return c.set()
}

// restore ends become, however far it came.
func (c *caps) restore() error {
	if err := setFsuid(0); err != nil {
		return err
	}
	return c.set()
}

// errNoUser says that the kernel does not know the uid.
var errNoUser = errors.New("no such uid in this user namespace")

// setFsuid asks again with an impossible id: the call reports no failure.
func setFsuid(uid uint32) error {
	if uid == math.MaxUint32 {
		return fmt.Errorf("setfsuid(%d): %w", uid, unix.EPERM)
	}
	_, _ = unix.SetfsuidRetUid(int(uid)) // the id before, and no error
	if now, _ := unix.SetfsuidRetUid(-1); uint32(now) != uid {
		return fmt.Errorf("setfsuid(%d): %w", uid, errNoUser)
	}
	return nil
}

// A filesystem with so much left for ordinary users can't come to its reserve
// before it is asked again: that would take 25 GiB/s.
const (
	roomEnough = 512 << 20
	roomWindow = 20 * time.Millisecond
)

// room remembers for a moment that a filesystem is far from its reserve, or
// has none.
type room struct{ ample atomic.Bool }

// hasRoom reports whether it does not matter on whose behalf the file is
// written.
func (f *realFile) hasRoom() bool {
	room := f.room.Load()
	if room == nil {
		room = f.findRoom()
	}
	return room != nil && (room.ample.Load() || room.ask(f.fd))
}

// findRoom is the room of the filesystem that the file lies on, or nil if the
// kernel won't tell. There may be several below one backing directory.
func (f *realFile) findRoom() *room {
	if room := f.room.Load(); room != nil {
		return room
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return nil
	}
	found, _ := f.medium.rooms.LoadOrStore(st.Dev, &room{})
	f.room.Store(found.(*room))
	return found.(*room)
}

func (r *room) ask(fd int) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	reserves := st.Bavail != st.Bfree || st.Bfree == 0
	if reserves && st.Bavail*uint64(st.Bsize) < roomEnough {
		return false
	}
	if r.ample.CompareAndSwap(false, true) {
		time.AfterFunc(roomWindow, r.askAgain)
	}
	return true
}

func (r *room) askAgain() { r.ample.Store(false) }
