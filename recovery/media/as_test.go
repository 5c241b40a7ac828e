package media

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const user = 12345

// newReserve is an ext4 with 64 MiB, a fifth of it for root only, and a file in it.
func newReserve(t *testing.T) (dir string, f File) {
	t.Helper()
	l := newLoopFS(t, "ext4")
	l.umount()
	l.run("mkfs.ext4", "-q", "-F", "-m", "20", l.image, "64M")
	l.mountIt()
	put(t, l.mount, "file", 1)
	return l.mount, opened(t, l.mount, "file")
}

// left is what root and others may still take, in bytes.
func left(t *testing.T, dir string) (root, others uint64) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var st unix.Statfs_t
	err = errors.Join(unix.Syncfs(int(d.Fd())), unix.Fstatfs(int(d.Fd()), &st)) // for delayed allocation
	if err != nil {
		t.Fatal(err)
	}
	return st.Bfree * uint64(st.Bsize), st.Bavail * uint64(st.Bsize)
}

// fill writes for uid until the filesystem says no.
func fill(t *testing.T, f File, uid uint32) {
	t.Helper()
	buf := make([]byte, 64*page)
	for off := int64(page); ; {
		n, err := f.Pwrite(buf, off, uid)
		off += int64(n)
		if errors.Is(err, unix.ENOSPC) && len(buf) > page {
			buf = buf[:page]
		} else if errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatalf("filling at %d: %v", off, err)
		}
	}
}

// TestReservedBlocks: what a filesystem keeps for root is not given to others,
// though the daemon that writes for them is root; and root gets it.
func TestReservedBlocks(t *testing.T) {
	for _, uid := range []uint32{user, Nobody} {
		t.Run(fmt.Sprint(uid), func(t *testing.T) {
			dir, f := newReserve(t)
			fill(t, f, uid)
			root, others := left(t, dir)
			if others > 1<<20 || root < 10<<20 {
				t.Fatalf("full for %d: %d bytes left for others, %d for root", uid, others, root)
			}
			const far = 1 << 30
			if err := f.Allocate(0, far, 5<<20, uid); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("fallocate: %v, want ENOSPC", err)
			}
			if err := f.Truncate(2 * far); err != nil { // takes no blocks, and so goes as root
				t.Error(err)
			}
			if after, _ := left(t, dir); after+1<<20 < root {
				t.Errorf("%d bytes left for root, there were %d", after, root)
			}
			if n, err := f.Pwrite(make([]byte, page), 3*far, 0); n != page || err != nil {
				t.Errorf("write for root: %d, %v", n, err)
			}
			if err := f.Allocate(0, far, 5<<20, 0); err != nil {
				t.Errorf("fallocate for root: %v", err)
			}
			if n, err := f.Pwrite(make([]byte, page), far, uid); n != page || err != nil {
				t.Errorf("write of what is allocated: %d, %v", n, err)
			}
		})
	}
}

// TestAs: the identity is right inside, other rights stay, and no thread keeps it.
func TestAs(t *testing.T) {
	if !isPrivileged() {
		t.Skip("only root can take on another's identity")
	}
	own, err := getCaps()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(path, 0o6755); err != nil {
		t.Fatal(err)
	}
	check := func() error {
		inside, err := getCaps()
		fsuid, _ := unix.SetfsuidRetUid(-1)
		if err != nil || fsuid != user || !inside.has(unix.CAP_FSETID) || !inside.has(unix.CAP_DAC_OVERRIDE) || inside.has(unix.CAP_SYS_RESOURCE) {
			t.Errorf("inside: fsuid %d, capabilities %v, %v", fsuid, inside, err)
		}
		fd, err := unix.Open(path, unix.O_WRONLY, 0) // not the user's
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, []byte("x"))
		return errors.Join(err, unix.Close(fd))
	}
	var both sync.WaitGroup
	for range 4 {
		both.Go(func() {
			for range 100 {
				if err := As(user, check); err != nil {
					t.Error(err)
				}
				now, err := getCaps()
				if fsuid, _ := unix.SetfsuidRetUid(-1); fsuid != 0 || now != own || err != nil {
					t.Errorf("afterwards: fsuid %d, capabilities %v, %v", fsuid, now, err)
				}
			}
		})
	}
	both.Wait()
	if st, err := os.Stat(path); err != nil || st.Mode()&(os.ModeSetuid|os.ModeSetgid) == 0 {
		t.Errorf("setuid and setgid are gone: %v, %v", st.Mode(), err)
	}
	if err := As(^uint32(0), func() error { t.Error("called"); return nil }); !errors.Is(err, unix.EPERM) {
		t.Errorf("an impossible uid: %v", err)
	}
}

// TestAsInAUserNamespace: where nobody is mapped but root, a writeback is written
// all the same, and the thread is what it was.
func TestAsInAUserNamespace(t *testing.T) {
	const inside = "MENDFS_TEST_IN_USER_NAMESPACE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestAsInAUserNamespace$")
		cmd.Env = append(os.Environ(), inside+"=1")
		self := os.Geteuid()
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: self, Size: 1}},
		}
		if out, err := cmd.CombinedOutput(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
			t.Skip("no user namespaces here: ", err)
		} else if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if !isPrivileged() {
		t.Fatal("not root here: this shows nothing")
	}
	called := false
	if err := As(Nobody, func() error { called = true; return nil }); err != nil || !called {
		t.Errorf("called: %v, %v", called, err)
	}
}

// TestRoom: far from the reserve nobody takes on identities, near it all do.
func TestRoom(t *testing.T) {
	_, f := newReserve(t)
	small := f.(*realFile)
	if small.hasRoom() {
		t.Error("64 MiB are enough")
	}
	put(t, "/dev/shm", "mendfs-room", 1)
	t.Cleanup(func() { os.Remove("/dev/shm/mendfs-room") })
	tmpfs := opened(t, "/dev/shm", "mendfs-room").(*realFile)
	if !tmpfs.hasRoom() || !tmpfs.room.Load().ample.Load() {
		t.Error("tmpfs has a reserve")
	}
	if n, err := tmpfs.Pwrite(make([]byte, page), 0, user); n != page || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	tmpfs.room.Load().askAgain()
	if !tmpfs.hasRoom() {
		t.Error("asked again, there is none")
	}
}
