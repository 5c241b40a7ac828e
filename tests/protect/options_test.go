package protect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/tests/harness"
)

// What --protect leaves open is said when mounting, and in status.
func TestLimitsAreSaid(t *testing.T) {
	for protect, words := range map[string][]string{
		"rw":    {"protect rw: programs that map files get SIGBUS", "write whole pages", "the kernel does not see simulated poison"},
		"known": {"protect known: the first touch of poison", "first open on after its poison is known", "the kernel does not see simulated poison"},
	} {
		m := simulated(t, protect)
		for _, want := range words {
			if !strings.Contains(m.Stderr(), want) {
				t.Errorf("%s: mount does not say %q: %s", protect, want, m.Stderr())
			}
		}
		if !strings.Contains(m.Ready(), "protect "+protect) {
			t.Errorf("ready line: %s", m.Ready())
		}
		if got := m.Status().Protection; got == nil || got.Mode != protect {
			t.Errorf("status in JSON: %+v", got)
		}
		if got := harness.Mendfs(t, "status", m.At).Stdout; !strings.Contains(got, protect+", 0 files open in passthrough") {
			t.Errorf("status: %s", got)
		}
		m.Stop()
	}
	m := harness.Simulated(t, "dax")
	if got := m.Status().Protection; got == nil || got.Mode != "full" || got.Passthrough != 0 {
		t.Errorf("status without --protect: %+v", got)
	}
}

// refused mounts, which must fail so and leave nothing mounted.
func refused(t *testing.T, exit int, words []string, program string, args ...string) {
	t.Helper()
	r := harness.Run(t, program, args...)
	if r.Exit != exit {
		t.Errorf("exit %d, want %d: %s", r.Exit, exit, r.Stderr)
	}
	for _, want := range words {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("it does not say %q: %s", want, r.Stderr)
		}
	}
}

func TestRefusals(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root, harness.Program("setpriv"))
	dir := harness.Dir(t)
	sub := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o777); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b, at := sub("b"), sub("m")
	state := filepath.Join(dir, "s")
	bin := os.Getenv("MENDFS_BIN")
	mount := func(protect string) []string {
		return []string{"mount", "--protect", protect, "--state", state, b, at}
	}
	refused(t, control.ExitUsage, []string{`"some"`, "full, rw, known"}, bin, mount("some")...)
	refused(t, control.ExitUsage, []string{"--protect is empty"}, bin, mount("")...)
	for _, protect := range []string{"rw", "known"} {
		refused(t, control.ExitUsage, []string{"--protect " + protect, "CAP_SYS_ADMIN", "mount as root"},
			"setpriv", append([]string{"--reuid", "1000", "--regid", "1000", "--clear-groups", bin}, mount(protect)...)...)
		// A filesystem that stands on others can't be passed on.
		upper, work, over := sub(protect+"u"), sub(protect+"w"), sub(protect+"o")
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", b, upper, work)
		if err := unix.Mount("overlay", over, "overlay", 0, options); err != nil {
			t.Fatal(err)
		}
		refused(t, control.ExitOperational, []string{"--protect " + protect, over, "leave it out"},
			bin, "mount", "--protect", protect, "--state", state, over, at)
		if err := unix.Unmount(over, 0); err != nil {
			t.Error(err)
		}
	}
	if kind := harness.MountedAs(t, at); kind != "" {
		t.Errorf("%s is mounted as %s", at, kind)
	}
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a state directory was left: %v", err)
	}
}

// In strict, programs get EIO from either side.
func TestStrict(t *testing.T) {
	for _, protect := range []string{"rw", "known"} {
		m := harness.Simulated(t, "dax", "--protect", protect, "--semantics", "strict")
		m.File("f", 1, 8*page)
		old := open(t, m, "f", unix.O_RDONLY)
		m.Inject("f", pageAt(2))
		f := open(t, m, "f", unix.O_RDONLY)
		if _, err := unix.Pread(f.fd, make([]byte, page), 2*page); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: read of poison: %v, want EIO", protect, err)
		}
		if n, err := unix.Pread(f.fd, make([]byte, page), 3*page); n != page || err != nil {
			t.Errorf("%s: read beside it: %d, %v", protect, n, err)
		}
		f.close()
		old.close()
		m.Stop()
	}
}

// --verify-writes finds poison under a write that nobody knew of, and says
// that it is on.
func TestVerifyWrites(t *testing.T) {
	m := harness.Simulated(t, "dax", "--verify-writes")
	data := m.File("f", 1, 8*page)
	m.InjectLatent("f", rng{Off: 2*page + 640, Len: 64}, rng{Off: 5 * page, Len: 64})
	data = m.Overwrite("f", data, harness.Pattern(2, page), 2*page)
	data = m.Overwrite("f", data, harness.Pattern(3, sector), 5*page)
	if left := m.Poison("f"); !left.Empty() {
		t.Errorf("still poisoned: %v", left)
	}
	m.Check("f", data)
	if !strings.Contains(m.Ready(), "verify-writes") {
		t.Errorf("ready line: %s", m.Ready())
	}
	if got := harness.Mendfs(t, "status", m.At).Stdout; !strings.Contains(got, "verify writes") {
		t.Errorf("status: %s", got)
	}
}
