package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// place is a scratch directory with what a mount needs: b with a file, m, and
// s, which does not exist yet.
func place(t *testing.T) (dir, b, m, s string) {
	t.Helper()
	dir = harness.Dir(t)
	b, m, s = mkdir(t, dir, "b"), mkdir(t, dir, "m"), filepath.Join(dir, "s")
	harness.WriteFile(t, filepath.Join(b, "file"), harness.Pattern(1, 3*page))
	return dir, b, m, s
}

func TestMountRefusals(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	dir, b, m, s := place(t)
	inB := mkdir(t, b, "inside")
	stranger := mkdir(t, dir, "stranger")
	harness.WriteFile(t, filepath.Join(stranger, "something"), []byte("of somebody"))
	before := tree(t, dir)
	tests := []struct {
		name  string
		exit  int
		words []string
		args  []string
	}{
		{"an unknown flag", exitUsage, []string{"--frobnicate"}, []string{"--frobnicate", b, m}},
		{"a breaker that lets nothing through", exitUsage, []string{"--breaker", "from 1"}, []string{"--breaker", "0", b, m}},
		{"a semantics of a later version", exitUsage, []string{"prefix"}, []string{"--semantics", "prefix", b, m}},
		{"an unknown semantics", exitUsage, []string{"nonsense"}, []string{"--semantics", "nonsense", b, m}},
		{"an unknown profile", exitUsage, []string{"vax"}, []string{"--simulate", "vax", b, m}},
		{"an unknown option", exitUsage, []string{"frobnicate"}, []string{"-o", "ro,frobnicate", b, m}},
		{"no BACKING", exitUsage, nil, nil},
		{"too much", exitUsage, []string{"third"}, []string{b, m, "third"}},
		{"BACKING is missing", exitUsage, []string{"nowhere"}, []string{filepath.Join(dir, "nowhere"), m}},
		{"MOUNTPOINT is missing", exitUsage, []string{"nowhere"}, []string{b, filepath.Join(dir, "nowhere")}},
		{"BACKING is a file", exitUsage, []string{"file"}, []string{filepath.Join(b, "file"), m}},
		{"MOUNTPOINT is a file", exitUsage, []string{"file"}, []string{b, filepath.Join(b, "file")}},
		{"MOUNTPOINT inside BACKING", exitUsage, []string{"inside"}, []string{b, inB}},
		{"BACKING inside MOUNTPOINT", exitUsage, []string{"inside"}, []string{inB, b}},
		{"a state directory inside BACKING", exitUsage, []string{"inside"}, []string{"--state", filepath.Join(b, "state"), b, m}},
		{"a state directory inside MOUNTPOINT", exitUsage, []string{"inside"}, []string{"--state", filepath.Join(m, "state"), b, m}},
		{"a state directory with other things in it", exitUsage, []string{"stranger"}, []string{"--state", stranger, b, m}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"mount"}, test.args...)
			if !strings.Contains(strings.Join(args, " "), "--state") {
				args = append(args, "--state", s)
			}
			refuses(t, test.exit, test.words, args...)
			for _, at := range []string{b, m, inB} {
				if kind := harness.MountedAs(t, at); kind != "" {
					t.Errorf("%s is mounted on %s", kind, at)
				}
			}
			if after := tree(t, dir); after != before {
				t.Errorf("something has changed: from\n%s to\n%s", before, after)
			}
		})
	}
}

// What a mount has, another one does not get.
func TestMountRefusesWhatIsInUse(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.Simulated(t, "dax")
	mkdir(t, m.Path("sub"))
	_, b2, m2, s2 := place(t)
	for name, args := range map[string][]string{
		"the same BACKING":                       {"--state", s2, m.Backing, m2},
		"a directory within BACKING":             {"--state", s2, m.Below("sub"), m2},
		"what contains BACKING":                  {"--state", s2, filepath.Dir(m.Backing), m2},
		"the mount as BACKING":                   {"--state", s2, m.At, m2},
		"a directory in the mount as BACKING":    {"--state", s2, m.Path("sub"), m2},
		"the same MOUNTPOINT":                    {"--state", s2, b2, m.At},
		"a mountpoint in BACKING":                {"--state", s2, b2, m.Below("sub")},
		"the same state directory":               {"--state", m.State, b2, m2},
		"the state directory within the BACKING": {"--state", m.Below("state"), b2, m2},
	} {
		t.Run(name, func(t *testing.T) {
			r := harness.Mendfs(t, append([]string{"mount"}, args...)...)
			if r.Exit != exitOperational && r.Exit != exitUsage {
				t.Errorf("exit %d", r.Exit)
			}
			refused(t, r, r.Exit, nil, args...)
		})
	}
	m.File("still", 1, 5*page) // and it goes on
}

func TestMountpointOfAnotherFilesystemIsInUse(t *testing.T) {
	d := harness.NewDisk(t, "ext4", 64)
	_, b, _, s := place(t)
	refuses(t, exitOperational, []string{"in use", "ext4"}, "mount", "--state", s, b, d.At)
}

func TestStateDirectoryOfAnotherFilesystem(t *testing.T) {
	m := harness.Simulated(t, "dax")
	m.Stop()
	d := harness.NewDisk(t, "ext4", 64)
	before := tree(t, m.State)
	refuses(t, exitUsage, []string{"another filesystem"}, "mount", "--state", m.State, d.At, m.At)
	other := mkdir(t, filepath.Dir(m.Backing), "other") // of the same filesystem
	refuses(t, exitUsage, []string{m.State}, "mount", "--state", m.State, other, m.At)
	if after := tree(t, m.State); after != before {
		t.Error("the state directory has changed")
	}
}

// Each in a mount namespace of its own, where /dev has other things in it.
func TestMountWithoutDevFuse(t *testing.T) {
	harness.Need(t, harness.Root, harness.FUSE, harness.Program("unshare"))
	_, b, m, s := place(t)
	args := []string{"mount", "--state", s, b, m}
	r := harness.Run(t, "unshare", append([]string{"-m", "sh", "-c", `mount -t tmpfs none /dev && exec "$0" "$@"`, os.Getenv("MENDFS_BIN")}, args...)...)
	refused(t, r, exitOperational, []string{"/dev/fuse", "modprobe fuse"}, args...)
}

func TestMountWithoutPermission(t *testing.T) {
	harness.Need(t, harness.Root, harness.FUSE)
	dir, b, m, s := place(t)
	for _, open := range []string{dir, filepath.Dir(dir)} {
		makeEnterable(t, open)
	}
	bin := filepath.Join(dir, "mendfs")
	data, err := os.ReadFile(os.Getenv("MENDFS_BIN"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"mount", "--state", s, b, m}
	cmd := exec.Command(bin, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err == nil {
		t.Error("nobody may mount a directory that nobody may not read")
	}
	r := harness.Result{Exit: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	refused(t, r, exitOperational, nil, args...)
	if _, err := os.Stat(s); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v, want none", err)
	}
}

// recorded is the state directory of a mount that has ended.
func recorded(t *testing.T) string {
	t.Helper()
	m := harness.Simulated(t, "dax")
	m.Stop()
	return m.State
}

// makeEnterable lets other users through a directory.
func makeEnterable(t *testing.T, dir string) {
	t.Helper()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o011 == 0o011 {
		return
	}
	if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
		t.Fatal(err)
	}
}

func TestInjectRefusals(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 3*page)
	mkdir(t, m.Path("dir"))
	f := m.Path("f")
	tests := []struct {
		name  string
		exit  int
		words []string
		args  []string
	}{
		{"a negative offset", exitUsage, []string{"-1"}, []string{f, "--range", "-1+64"}},
		{"a negative length", exitUsage, []string{"-64"}, []string{f, "--range", "0+-64"}},
		{"no length", exitUsage, []string{"64"}, []string{f, "--range", "64"}},
		{"a length of 0", exitUsage, []string{"empty"}, []string{f, "--range", "64+0"}},
		{"no number", exitUsage, []string{"x"}, []string{f, "--range", "x+64"}},
		{"a number that is too large", exitUsage, []string{"99999999999999999999"}, []string{f, "--range", "99999999999999999999+1"}},
		{"a size that is too large", exitUsage, []string{"9999999999G"}, []string{f, "--range", "0+9999999999G"}},
		{"an end beyond all", exitUsage, []string{"9223372036854775807"}, []string{f, "--range", "9223372036854775807+1"}},
		{"past the end", exitUsage, []string{"12288"}, []string{f, "--range", "12288+1"}},
		{"across the end", exitUsage, []string{"12000"}, []string{f, "--range", "12000+1000"}},
		{"the second range is bad", exitUsage, []string{"20000"}, []string{f, "--range", "0+64", "--range", "20000+1"}},
		{"a directory", exitUsage, []string{"dir"}, []string{m.Path("dir"), "--range", "0+64"}},
		{"a missing file", exitUsage, []string{"nowhere"}, []string{m.Path("nowhere"), "--range", "0+64"}},
		{"nothing to do", exitUsage, []string{"--range"}, []string{f}},
		{"two things to do", exitUsage, []string{"--list"}, []string{f, "--range", "0+64", "--list"}},
		{"random places without a seed", exitUsage, []string{"--seed"}, []string{m.At, "--random", "3"}},
		{"more random places than there are", exitUsage, nil, []string{m.At, "--random", "100000", "--seed", "1"}},
		{"an injection that is not there", exitUsage, []string{"77"}, []string{m.At, "--remove", "77"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			refuses(t, test.exit, test.words, append([]string{"inject"}, test.args...)...)
			if left := m.Poison("f"); !left.Empty() {
				t.Fatalf("there is poison: %v", left)
			}
		})
	}
	m.Check("f", data)
}

func TestInjectOnARealMount(t *testing.T) {
	m := harness.New(t, harness.Config{})
	data := m.File("f", 1, 3*page)
	refuses(t, exitUsage, []string{"--simulate"}, "inject", m.Path("f"), "--range", "0+64")
	refuses(t, exitUsage, []string{"--simulate"}, "inject", "--list", m.At)
	m.Check("f", data)
}

// Overwriting simulated poison changes files: those that were there before the
// simulation need one more flag.
func TestInjectOnRealFiles(t *testing.T) {
	_, b, _, _ := place(t)
	m := harness.New(t, harness.Config{Backing: b, Flags: []string{"--simulate", "dax"}})
	refuses(t, exitUsage, []string{"--on-real-files"}, "inject", m.Path("file"), "--range", "0+64")
	if left := m.Poison("file"); !left.Empty() {
		t.Errorf("there is poison: %v", left)
	}
	if r := harness.Mendfs(t, "inject", "--on-real-files", m.Path("file"), "--range", "0+64"); r.Exit != exitOK {
		t.Errorf("with the flag: exit %d: %s", r.Exit, r.Stderr)
	}
}

func TestOtherRefusals(t *testing.T) {
	dir, b, _, s := place(t)
	before := tree(t, dir)
	for _, verb := range []string{"lost", "events", "status", "umount"} {
		if r := harness.Mendfs(t, verb, b); r.Exit != exitUsage && r.Exit != exitOperational {
			t.Errorf("%s of a directory that is no mount: exit %d", verb, r.Exit)
		} else {
			refused(t, r, r.Exit, []string{b}, verb, b)
		}
		refuses(t, exitUsage, []string{"nowhere"}, verb, filepath.Join(dir, "nowhere"))
		refuses(t, exitUsage, []string{"--frobnicate"}, verb, "--frobnicate", b)
	}
	refuses(t, exitUsage, []string{"frobnicate"}, "frobnicate")
	refuses(t, exitOperational, []string{"no directory on persistent memory", "--read"}, "scan", b)
	refuses(t, exitUsage, []string{"nowhere"}, "scan", filepath.Join(dir, "nowhere"))
	refuses(t, exitUsage, []string{s}, "lost", "--state", s)
	refuses(t, exitUsage, nil, "lost", "--all", "--pending", b)
	refuses(t, exitUsage, []string{"xml"}, "lost", "--format", "xml", b)
	refuses(t, exitUsage, []string{"--export"}, "lost", "--drop", b)
	refuses(t, exitUsage, []string{"not empty", "overwritten"}, "lost", "--export", dir, "--state", recorded(t))
	refuses(t, exitUsage, []string{"yesterday"}, "events", "--since", "yesterday", b)
	refuses(t, exitUsage, []string{"nowhere"}, "doctor", filepath.Join(dir, "nowhere"))
	if after := tree(t, dir); after != before {
		t.Errorf("something has changed: from\n%s to\n%s", before, after)
	}
}
