package posix

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/mendfs/mendfs/tests/harness"
)

// fcntlFlockLocksFile is the one test that no filesystem passes: it wants two
// fcntl locks of one process to conflict. By POSIX they are the process's, not
// the open file's, and the kernel never asks a filesystem about it. (go-fuse
// passes its own test by taking each for an open-file lock, which breaks xfstests 131.)
// TestFcntlFlockLocksFile holds that; the locks of two processes are compared in script/locks.py.
const fcntlFlockLocksFile = "FcntlFlockLocksFile"

// TestPosixtest runs go-fuse's conformance tests with no poison: all must
// pass, none be skipped.
func TestPosixtest(t *testing.T) {
	posixtests(t, harness.New(t, harness.Config{Backing: bareDir(t, roomy(t))}))
}

// TestPosixtestAmongPoison runs them while other files of the same tree have
// known and latent poison and another process keeps reading them.
func TestPosixtestAmongPoison(t *testing.T) {
	for _, profile := range []string{"dax", "line"} {
		t.Run(profile, func(t *testing.T) {
			m := harness.New(t, harness.Config{Backing: bareDir(t, roomy(t)), Flags: []string{"--simulate", profile}})
			damaged := damage(t, m)
			stop := keepReading(t, m, damaged)
			posixtests(t, m)
			stop()
			for _, name := range damaged {
				if len(m.Lost(name)) == 0 {
					t.Errorf("%s has lost nothing: the readers met no poison", name)
				}
			}
		})
	}
}

// damage makes files with known and with latent poison.
func damage(t *testing.T, m *harness.Mount) []string {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var names []string
	for i := range 6 {
		name := fmt.Sprint("damaged", i)
		m.File(name, uint64(i), 64*harness.Page)
		inject := m.Inject
		if i%2 == 1 {
			inject = m.InjectLatent
		}
		for range 4 {
			inject(name, harness.Range{Off: random.Int64N(64*harness.Page - 100), Len: 1 + random.Int64N(100)})
		}
		names = append(names, name)
	}
	return names
}

// keepReading has a process read the files again and again, from below the
// page cache, until stop is called. By then it has read each at least once.
func keepReading(t *testing.T, m *harness.Mount, names []string) (stop func()) {
	t.Helper()
	var script strings.Builder
	script.WriteString("set -e; once() {\n")
	for _, name := range names {
		fmt.Fprintf(&script, "dd if=%[1]s of=/dev/null bs=64k status=none; dd of=%[1]s oflag=nocache conv=notrunc,fdatasync count=0 status=none\n", name)
	}
	script.WriteString("}\nonce; echo read; while read -t 0.01 line || [ $? -gt 128 ]; do once; done")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = m.At
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Errorf("the reader has read nothing: %v", err)
	}
	return func() {
		t.Helper()
		_ = in.Close() // ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("the reader: %v: %s", err, stderr.String())
		}
	}
}

func posixtests(t *testing.T, m *harness.Mount) {
	if _, ok := posixtest.All[fcntlFlockLocksFile]; !ok {
		t.Errorf("there is no test %s any more", fcntlFlockLocksFile)
	}
	for name, test := range posixtest.All {
		if name == fcntlFlockLocksFile {
			continue
		}
		t.Run(name, func(t *testing.T) {
			defer func() {
				if t.Skipped() {
					t.Error("skipped")
				}
			}()
			if err := os.Mkdir(m.Path(name), 0o777); err != nil {
				t.Fatal(err)
			}
			test(t, m.Path(name))
		})
	}
}

// roomy is a disk with room for attributes of 64 KiB (XAttrLarge).
func roomy(t *testing.T) *harness.Disk {
	t.Helper()
	return newDisk(t, "ext4", 128, "-O", "ea_inode")
}

const lockTestDir = "MENDFS_LOCK_TEST_DIR"

// TestFcntlFlockLocksFile shows that go-fuse's test fails on a directory and
// in a mount in the same way. The test is run by a child, whose failure is
// what is wanted.
func TestFcntlFlockLocksFile(t *testing.T) {
	if dir := os.Getenv(lockTestDir); dir != "" {
		posixtest.All[fcntlFlockLocksFile](t, dir)
		return
	}
	d := newDisk(t, "ext4", 64)
	for _, dir := range []string{bareDir(t, d), harness.New(t, harness.Config{Backing: bareDir(t, d)}).At} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFcntlFlockLocksFile$")
		cmd.Env = append(os.Environ(), lockTestDir+"="+dir)
		out, err := cmd.CombinedOutput()
		const want = "FcntlFlock returned <nil>, expected EAGAIN"
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("in %s: %v, want %q in: %s", filepath.Base(dir), err, want, out)
		}
	}
}
