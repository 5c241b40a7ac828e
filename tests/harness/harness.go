// Package harness runs the mendfs binary for the mounted tests: it mounts,
// injects, asks, kills, unmounts, and compares what a mount shows with what it
// has to show.
//
// The mount under test is always another process, and programs that map its
// files are further ones: a process that waits for its own page fault to be served
// by itself waits for ever.
//
// Everything lives in short-named directories below $TMPDIR. What a test
// mounts or attaches is taken away at its end; what has to be taken away by force
// fails the test. A test that can't run on this machine says so by Need.
//
// A package of mounted tests has
//
//	func TestMain(m *testing.M) { harness.Main(m) }
//
// With MENDFS_BIN and MENDFS_BADMEDIA_BIN in the environment these are the programs under
// test, otherwise they are built from this checkout.
package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	mendfsBin   = "MENDFS_BIN"
	badmediaBin = "MENDFS_BADMEDIA_BIN"
)

// Main runs the tests of a package with the programs under test at hand.
func Main(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	for variable, source := range map[string]string{mendfsBin: "cmd/mendfs", badmediaBin: "tests/badmedia"} {
		if err := provide(variable, source, dir); err != nil {
			fmt.Fprintln(os.Stderr, "harness:", err)
			return 1
		}
	}
	return m.Run()
}

// provide sees to it that the environment variable names a program.
func provide(variable, source, dir string) error {
	if os.Getenv(variable) != "" {
		return nil
	}
	bin := filepath.Join(dir, filepath.Base(source))
	out, err := exec.Command("go", "build", "-o", bin, "github.com/mendfs/mendfs/"+source).CombinedOutput()
	if err != nil {
		return fmt.Errorf("building %s: %w\n%s", source, err, out)
	}
	return os.Setenv(variable, bin)
}

// A Leg is something that a test stands on: nil, or why it is not there.
type Leg func() error

// Need skips the test where a leg is missing. With CI=true or
// MENDFS_REQUIRE_ALL=1 it fails instead.
func Need(t testing.TB, legs ...Leg) {
	t.Helper()
	for _, leg := range legs {
		err := leg()
		switch {
		case err == nil:
		case os.Getenv("CI") == "true" || os.Getenv("MENDFS_REQUIRE_ALL") == "1":
			t.Fatalf("this test must run here and can't: %v", err)
		default:
			t.Skipf("can't run here: %v", err)
		}
	}
}

// FUSE is the right to mount FUSE filesystems.
func FUSE() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("nothing can be mounted: %w", err)
	}
	return f.Close()
}

// Root is being root.
func Root() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	return nil
}

// Loop is the right to attach loop devices.
func Loop() error {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("no loop devices: %w", err)
	}
	return errors.Join(f.Close(), Root())
}

// Program is the presence of a program.
func Program(names ...string) Leg {
	return func() error {
		for _, name := range names {
			if _, err := exec.LookPath(name); err != nil {
				return err
			}
		}
		return nil
	}
}

// Filesystem is a kernel that knows a filesystem, and its mkfs.
func Filesystem(name string) Leg {
	return func() error {
		known, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			return err
		}
		if !slices.Contains(strings.Fields(string(known)), name) {
			return fmt.Errorf("this kernel has no %s", name)
		}
		return Program("mkfs." + name)()
	}
}

// Dir is a fresh directory with a short name. It is removed at the end of the
// test; a mount that is still in it then fails the test and is detached.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t")
	if err == nil {
		err = os.Chmod(dir, 0o755) // some tests are other users
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, at := range mountsBelow(t, dir) {
			t.Errorf("%s is still mounted", at)
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Fatalf("detaching %s: %v", at, err) // and nothing is removed
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mountsBelow is what is mounted below dir, deepest first.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	var at []string
	for _, m := range mountinfo(t) {
		if m.at == dir || strings.HasPrefix(m.at, dir+"/") {
			at = append(at, m.at)
		}
	}
	slices.Reverse(at)
	return at
}

type mounted struct{ at, kind string }

func mountinfo(t testing.TB) []mounted {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var all []mounted
	for line := range strings.Lines(string(text)) {
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if ok && len(fields) > 4 {
			all = append(all, mounted{fields[4], strings.Fields(right)[0]})
		}
	}
	return all
}

// MountedAs is the filesystem type that is mounted at exactly this
// directory, the topmost one; "" if nothing is.
func MountedAs(t testing.TB, at string) string {
	t.Helper()
	kind := ""
	for _, m := range mountinfo(t) {
		if m.at == at {
			kind = m.kind
		}
	}
	return kind
}
