package resources

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/tests/harness"
)

// many is how many files there are in TestManyFiles: enough for the promise
// about memory, in the time that CI has. MENDFS_FULL=1 makes it 200,000.
func many() int {
	if os.Getenv("MENDFS_FULL") == "1" {
		return 200_000
	}
	return 100_000
}

const perDir = 1000

func manyName(i int) string { return fmt.Sprintf("%d/file-%d", i/perDir, i) }

// manyFiles is a filesystem with that many files.
func manyFiles(t *testing.T) *harness.Disk {
	t.Helper()
	d := harness.NewDisk(t, "ext4", 600, "-N", fmt.Sprint(many()+many()/perDir+1000), "-O", "^has_journal")
	for i := range many() {
		path := filepath.Join(d.At, manyName(i))
		if i%perDir == 0 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if i%(perDir/10) == 0 { // the others are empty, which is faster
			err = os.WriteFile(path, []byte(manyName(i)), 0o644)
		} else {
			err = unix.Mknod(path, unix.S_IFREG|0o644, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// plain is the binary without the race detector, whose memory is not the
// product's, in a process with few descriptors.
func plain(t *testing.T) {
	t.Helper()
	dir := harness.Dir(t)
	build := exec.Command("go", "build", "-o", dir+"/mendfs", "github.com/mendfs/mendfs/cmd/mendfs")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	limited := "#!/bin/sh\nulimit -n 1024 && exec " + dir + "/mendfs \"$@\"\n"
	if err := os.WriteFile(dir+"/limited", []byte(limited), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MENDFS_BIN", dir+"/limited")
}

// Looking at very many files takes few descriptors and little memory, and
// gives it back.
func TestManyFiles(t *testing.T) {
	const (
		mostFds    = 1024
		mostMemory = 64 << 10 // KiB
		files      = 100_000  // that it is promised for
	)
	plain(t)
	m := harness.New(t, harness.Config{Backing: manyFiles(t).At})
	s := serverOf(t, m)
	if n := s.openFilesLimit(); n != mostFds {
		t.Fatalf("the limit of descriptors is %d, want %d", n, mostFds)
	}
	find := func() {
		t.Helper()
		if found, want := m.Sh(`find . -type f -printf '%s\n' | wc -l`), fmt.Sprintln(many()); found != want {
			t.Errorf("find has found %s files, want %s", found, want)
		}
	}
	// The first times, for what the Go runtime and go-fuse make once and keep. How the
	// runtime lays that out is chance, by two MiB (3,944 to 6,392 KiB seen); what is kept of
	// each inode would add up.
	before := 0
	for range 3 {
		find()
		settled(t, m, 0)
		before = max(before, s.restingMemory(t))
	}

	var most atomic.Int64
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				most.Store(max(most.Load(), int64(s.fds())))
			}
		}
	}()
	var h control.Held
	for try := 0; try < 5 && h.Inodes < many(); try++ { // somebody else may have the kernel forget
		find()
		h = held(t, m)
	}
	during := s.field("RssAnon")
	close(stop)
	<-watched
	if most.Load() > mostFds-32 {
		t.Errorf("up to %d descriptors with a limit of %d", most.Load(), mostFds)
	}
	if h.Inodes < many() {
		t.Errorf("held: %+v, want all %d", h, many())
	}
	if limit := mostMemory * max(1, many()/files); during > limit {
		t.Errorf("%d KiB RssAnon with %d inodes, want at most %d", during, h.Inodes, limit)
	}
	settled(t, m, 0)
	after := s.restingMemory(t)
	for round := 0; round < 3 && after > before+before/10; round++ {
		find()
		settled(t, m, 0)
		after = min(after, s.restingMemory(t))
	}
	if after > before+before/10 {
		t.Errorf("RssAnon was %d KiB before, %d with %d inodes, is %d afterwards", before, during, h.Inodes, after)
	}
	t.Logf("RssAnon: %d KiB before, %d with %d inodes, %d afterwards; up to %d descriptors", before, during, h.Inodes, after, most.Load())

	for i := 0; i < many(); i += many() / 100 {
		i -= i % (perDir / 10)
		got, err := os.ReadFile(m.Path(manyName(i)))
		if err != nil || string(got) != manyName(i) {
			t.Errorf("%s: %q, %v", manyName(i), got, err)
		}
	}
}

// memory is the server's RssAnon in KiB.
func (s server) memory(t *testing.T) int { t.Helper(); return s.field("RssAnon") }

// restingMemory is memory when it does not fall any more: what is free is given
// back in the background.
func (s server) restingMemory(t *testing.T) int {
	t.Helper()
	for last, same := s.memory(t), 0; ; {
		time.Sleep(time.Second)
		now := s.memory(t)
		if same++; now < last-last/100 {
			same = 0
		}
		if last = now; same == 5 {
			return now
		}
	}
}

func (s server) openFilesLimit() uint64 {
	s.t.Helper()
	var r unix.Rlimit
	if err := unix.Prlimit(s.pid, unix.RLIMIT_NOFILE, nil, &r); err != nil {
		s.t.Fatal(err)
	}
	return r.Cur
}

// Files that come and go leave nothing behind.
func TestNothingIsLeft(t *testing.T) {
	m := harness.New(t, harness.Config{})
	s := serverOf(t, m)
	cycle := func(from, n int) {
		for i := from; i < from+n; i++ {
			name, other := m.Path(fmt.Sprint("a", i)), m.Path(fmt.Sprint("b", i))
			f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("x"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(name, other); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // half of them are unlinked while they are open
				f.Close()
			}
			if err := os.Remove(other); err != nil {
				t.Fatal(err)
			}
			f.Close() // again for some, which is an error of no interest
		}
	}
	cycle(0, 200) // whatever is made once
	settled(t, m, 0)
	fds, threads := s.fds(), s.field("Threads")
	cycle(200, 10_000)
	settled(t, m, 0)
	eventually(t, func() (bool, string) {
		return s.fds() <= fds, fmt.Sprintf("%d descriptors before, %d afterwards", fds, s.fds())
	})
	// Threads of the Go runtime never end, but there is no reason for many more.
	if n := s.field("Threads"); n > threads+8 {
		t.Errorf("%d threads before, %d afterwards", threads, n)
	}
}
