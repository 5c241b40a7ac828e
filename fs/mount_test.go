package fs

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRenameRace exchanges two directories while attributes are set on open
// files in them: by path, some would reach the wrong file.
func TestRenameRace(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	var fds [2]int
	for i, dir := range []string{"a", "b"} {
		mkdir(t, m.path(dir))
		write(t, m.path(dir+"/f"), "")
		fd, err := unix.Open(m.path(dir+"/f"), unix.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	var below [2]int // the same files, without mendfs
	for i, dir := range []string{"a", "b"} {
		fd, err := unix.Open(m.below(dir+"/f"), unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		below[i] = fd
	}

	var stop atomic.Bool
	var exchanges, wrong int
	var race sync.WaitGroup
	race.Go(func() { // stopped below
		for !stop.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, m.path("a"), unix.AT_FDCWD, m.path("b"), unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
			exchanges++
		}
	})
	for i := range 2000 {
		k := i % 2
		value := []byte(fmt.Sprint(i))
		if err := unix.Fsetxattr(fds[k], "user.n", value, 0); err != nil {
			t.Error(err)
		}
		if err := unix.Ftruncate(fds[k], int64(i)); err != nil {
			t.Error(err)
		}
		got := make([]byte, 20)
		n, err := unix.Fgetxattr(below[k], "user.n", got)
		var st unix.Stat_t
		if e := unix.Fstat(below[k], &st); err != nil || e != nil || !bytes.Equal(got[:n], value) || st.Size != int64(i) {
			wrong++
		}
	}
	stop.Store(true)
	race.Wait()
	if wrong > 0 || exchanges < 100 {
		t.Errorf("%d of 2000 changes went to the wrong file during %d exchanges", wrong, exchanges)
	}
}

func TestAppendOnlyFile(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	write(t, m.below("f"), "1\n")
	if said := sh(t, m.backing, root, `chattr +a f`); said != "" {
		t.Fatal(said)
	}
	defer sh(t, m.backing, root, `chattr -a f`)
	const script = `echo 2 >>f; cat f; echo no >f; truncate -s 0 f; rm -f f`
	want := "1\n2\n/bin/sh: 1: cannot create f: Operation not permitted\n" +
		"truncate: cannot open 'f' for writing: Operation not permitted\nrm: cannot remove 'f': Operation not permitted\nexit status 1\n"
	if got := sh(t, m.mnt, root, script); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLostXattr(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second})
	write(t, m.path("f"), "x")
	if _, err := unix.Getxattr(m.path("f"), lostAttr, nil); err != unix.ENODATA {
		t.Errorf("get of a file that lost nothing: %v", err)
	}
	if err := unix.Setxattr(m.path("f"), lostAttr, []byte("x"), 0); err != unix.EPERM {
		t.Errorf("set: %v", err)
	}
	if err := unix.Removexattr(m.path("f"), lostAttr); err != unix.EPERM {
		t.Errorf("remove: %v", err)
	}
	// Stored below by somebody, it is neither believed nor listed.
	if err := unix.Setxattr(m.below("f"), lostAttr, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Listxattr(m.path("f"), nil); n != 0 || err != nil {
		t.Errorf("list: %d, %v", n, err)
	}
	if _, err := unix.Getxattr(m.path("f"), lostAttr, nil); err != unix.ENODATA {
		t.Errorf("get of what was stored below: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second, ReadOnly: true}) // mounted rw: it must refuse by itself
	write(t, m.below("f"), "x")
	before := sh(t, m.backing, root, `find . -printf '%p %m %s %C@\n'`)
	said := sh(t, m.mnt, root, `echo x >f; echo x >g; mkdir d; ln -s a b; mkfifo p; ln f l; mv f h; rm -f f; chmod 777 f; truncate -s 0 f; setfattr -n user.a -v 1 f; setfattr -x user.a f; touch f; cat f; rmdir .`)
	if n := strings.Count(said, "Read-only file system"); n != 13 {
		t.Errorf("%d of 13 refused:\n%s", n, said)
	}
	if after := sh(t, m.backing, root, `find . -printf '%p %m %s %C@\n'`); before != after {
		t.Errorf("changed:\n%s\nto\n%s", before, after)
	}
}

func TestStatfsAndNoAtime(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second, NoAtime: true})
	var got, want unix.Statfs_t
	if err := unix.Statfs(m.mnt, &got); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(m.backing, &want); err != nil {
		t.Fatal(err)
	}
	if got.Blocks != want.Blocks || got.Bsize != want.Bsize || got.Files != want.Files || got.Namelen != want.Namelen {
		t.Errorf("statfs: %+v, want %+v", got, want)
	}
	write(t, m.below("f"), "x")
	const script = `touch -a -d @1000 f; touch -m -d @2000 f`
	sh(t, m.backing, root, script)
	if got := read(t, m.path("f")); got != "x" {
		t.Error(got)
	}
	if got := sh(t, m.backing, root, `stat -c %X f`); got != "1000\n" {
		t.Errorf("the access time moved to %s", got)
	}
}

// TestOrdinaryUser serves as somebody without privileges: no identities, no
// file handles, and all rules are the backing kernel's.
func TestOrdinaryUser(t *testing.T) {
	m := mountNew(t, serveConfig{Timeout: time.Second, User: bob.uid, MaxFds: 32})
	const script = `umask 027; echo x >f; mkdir -m 1777 d; ln -s f l; mkfifo p; chmod 4755 f; echo y >>f; touch -d @5 f
mkdir many; for i in $(seq 100); do echo $i >many/$i; done; cat many/*; ln f g; rm f; mv g h; cat h; setfattr -n user.a -v 1 h; getfattr -d h
setfacl -d -m u:1001:rw d; umask 077; touch d/f; getfacl -n d/f; chown 0 h; rm -r many; find . -printf '%p %y %#m %U:%G %n %l\n' | sort`
	bare := newDir(t)
	if err := os.Chown(bare, int(bob.uid), int(bob.gid)); err != nil {
		t.Fatal(err)
	}
	got, want := sh(t, m.mnt, bob, script), sh(t, bare, bob, script)
	if got != want {
		t.Errorf("through the mount:\n%s\nwithout mendfs:\n%s", got, want)
	}
}
