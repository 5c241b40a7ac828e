package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBadInput runs command lines that can't be obeyed. Each gets one line on
// standard error, with the next step behind a semicolon, nothing on standard
// output, the exit code, and no usage dump.
func TestBadInput(t *testing.T) {
	s := newScene(t)
	file := filepath.Join(s.in, "a-file")
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"backing/sub", "real", "real-mnt"} {
		if err := os.Mkdir(filepath.Join(s.in, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sub, missing := filepath.Join(s.backing, "sub"), filepath.Join(s.in, "missing")
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"unknown verb", []string{"explode"}, 16, `unknown verb "explode"`},
		{"help for an unknown verb", []string{"help", "bogus"}, 16, `unknown verb "bogus"`},
		{"unknown flag", []string{"mount", "--frob", s.backing}, 16, "--frob"},
		{"unknown short flag", []string{"lost", "-x", s.mnt}, 16, "-x"},
		{"flag without value", []string{"mount", s.backing, "--state"}, 16, "--state"},
		{"--protect", []string{"mount", "--protect", "some", s.backing}, 16, `no protection "some"; there are: full, rw, known`},
		{"--repair", []string{"mount", "--repair=soon", s.backing}, 16, `no time of repair is called "soon"`},
		{"--repair eager where poison is to be seen", []string{"mount", "--repair=eager", "--semantics=strict", s.backing}, 16, "leave one of both out"},
		{"--repair eager of a read-only mount", []string{"mount", "--repair=eager", "--read-only", s.backing}, 16, "leave one of both out"},
		{"--breaker 0", []string{"mount", "--breaker", "0", s.backing}, 16, "from 1"},
		{"--breaker -5", []string{"mount", "--breaker=-5", s.backing}, 16, "from 1"},
		{"--breaker not a number", []string{"mount", "--breaker", "many", s.backing}, 16, `"many" is no value for --breaker`},
		{"lost --export without a target", []string{"lost", "--export", missing}, 16, "neither"},
		{"lost --export ''", []string{"lost", "--export", "", s.mnt}, 16, "--export"},
		{"lost --export --all", []string{"lost", "--export", missing, "--all", s.mnt}, 16, "excludes"},
		{"lost --drop alone", []string{"lost", "--drop", s.mnt}, 16, "goes with --export"},
		{"lost --format", []string{"lost", "--format", "xml", s.mnt}, 16, `"xml" is no format`},
		{"lost --format ''", []string{"lost", "--format", "", s.mnt}, 16, "is no format"},
		{"lost --format mapfile --json", []string{"lost", "--format", "mapfile", "--json", s.mnt}, 16, "exclude each other"},
		{"lost --format mapfile --all", []string{"lost", "--format", "mapfile", "--all", s.mnt}, 16, "nothing else"},
		{"semantics of a later version", []string{"mount", "--semantics", "prefix", s.backing, s.mnt}, 16, "not in this version"},
		{"unknown semantics", []string{"mount", "--semantics", "lenient", s.backing, s.mnt}, 16, "lenient"},
		{"unknown profile", []string{"mount", "--simulate", "optane", s.backing, s.mnt}, 16, "optane"},
		{"unknown -o", []string{"mount", "-o", "ro,frob", s.backing, s.mnt}, 16, "frob"},
		{"no target", []string{"mount"}, 16, "no target"},
		{"too many targets", []string{"mount", "a", "b", "c"}, 16, "unexpected argument c"},
		{"empty mountpoint", []string{"mount", s.backing, ""}, 16, "empty"},
		{"empty backing", []string{"mount", "", s.mnt}, 16, "no backing"},
		{"missing backing", []string{"mount", missing, s.mnt}, 16, "does not exist"},
		{"missing mountpoint", []string{"mount", s.backing, missing}, 16, "does not exist"},
		{"a file as backing", []string{"mount", file, s.mnt}, 16, "not a directory"},
		{"a file as mountpoint", []string{"mount", s.backing, file}, 16, "not a directory"},
		{"mountpoint inside the backing", []string{"mount", s.backing, sub}, 16, "inside the backing"},
		{"backing inside the mountpoint", []string{"mount", sub, s.backing}, 16, "inside the mountpoint"},
		{"state inside the backing", []string{"mount", "--state", sub + "/s", s.backing, s.mnt}, 16, "inside the backing"},
		{"state is not a state directory", []string{"mount", "--state", s.in, filepath.Join(s.in, "real"), filepath.Join(s.in, "real-mnt")}, 16, "state directory"},
		{"lost outside a mount", []string{"lost", s.in}, 16, "does not lie in a mendfs mount"},
		{"lost without a target", []string{"lost"}, 16, "neither"},
		{"lost --all --pending", []string{"lost", "--all", "--pending", s.mnt}, 16, "exclude each other"},
		{"status with both", []string{"status", "--state", s.in, s.mnt}, 16, "exclude each other"},
		{"no state directory", []string{"status", "--state", missing}, 16, "not a state directory"},
		{"a file as state directory", []string{"status", "--state", file}, 16, "not a state directory"},
		{"status --state ''", []string{"status", "--state", ""}, 16, "--state"},
		{"lost --state ''", []string{"lost", "--state=", s.mnt}, 16, "--state"},
		{"events --state ''", []string{"events", "--state", ""}, 16, "--state"},
		{"lost of a missing path", []string{"lost", filepath.Join(s.mnt, "nope")}, 16, "does not exist"},
		{"events --since", []string{"events", "--since", "yesterday", s.mnt}, 16, "yesterday"},
		{"umount of nothing", []string{"umount", s.mnt}, 16, "nothing of mendfs is mounted"},
		{"umount of a missing path", []string{"umount", missing}, 16, "does not exist"},
		{"inject nothing", []string{"inject", s.mnt}, 16, "exactly one"},
		{"inject two things", []string{"inject", s.mnt, "--list", "--clear"}, 16, "exactly one"},
		{"inject -1", []string{"inject", file, "--range=-1+64"}, 16, "-1"},
		{"inject overflow", []string{"inject", file, "--range", "9223372036854775807+1"}, 16, "beyond"},
		{"inject empty range", []string{"inject", file, "--range", "0+0"}, 16, "empty"},
		{"inject no range", []string{"inject", file, "--range", "64"}, 16, "not a range"},
		{"inject --random without --seed", []string{"inject", s.mnt, "--random", "3"}, 16, "--seed"},
		{"inject --random 0", []string{"inject", s.mnt, "--random", "0", "--seed", "1"}, 16, "--random 0 is no number of places"},
		{"inject --random -3", []string{"inject", s.mnt, "--random", "-3", "--seed", "1"}, 16, "-3"},
		{"inject --seed not a number", []string{"inject", s.mnt, "--random", "3", "--seed", "x"}, 16, `"x" is no value for --seed`},
		{"inject outside a mount", []string{"inject", file, "--range", "0+1"}, 16, "does not lie in a mendfs mount"},
		{"doctor of nothing", []string{"doctor", missing}, 16, "there is no directory"},
		{"doctor of a file", []string{"doctor", file}, 16, "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, c.code, c.says, c.args...)
		})
	}
	for _, changed := range []string{missing, s.state} {
		if _, err := os.Stat(changed); err == nil {
			t.Errorf("%s was made", changed)
		}
	}
}

// refused checks the shape of a refusal.
func refused(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	r := run(t, args...)
	if r.code != code {
		t.Errorf("exit %d, want %d: %s", r.code, code, r.stderr)
	}
	if strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "mendfs") || !strings.Contains(r.stderr, "; ") {
		t.Errorf("not one line with a next step:\n%s", r.stderr)
	}
	if !strings.Contains(r.stderr, says) {
		t.Errorf("%q does not say %q", r.stderr, says)
	}
	if r.stdout != "" {
		t.Errorf("standard output: %s", r.stdout)
	}
}

// TestBadInputOnMounts is what is refused because of a mount that runs.
func TestBadInputOnMounts(t *testing.T) {
	s := newScene(t)
	if err := os.Mkdir(filepath.Join(s.backing, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(s.in, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	s.mount() // real, not simulated
	file := s.write("file", make([]byte, 4096))
	sub := filepath.Join(s.backing, "sub")
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"inject on a real mount", []string{"inject", file, "--range", "0+64"}, 16, "simulat"},
		{"inject --list on a real mount", []string{"inject", "--list", s.mnt}, 16, "simulat"},
		{"mountpoint in use", []string{"mount", other, s.mnt}, 8, "already mounted"},
		{"backing mounted already", []string{"mount", s.backing, other}, 8, "already mounted"},
		{"backing within one", []string{"mount", sub, other}, 8, "lies within"},
		{"backing contains one", []string{"mount", s.in, other}, 16, "inside"},
		{"backing in the mount", []string{"mount", filepath.Join(s.mnt, "sub"), other}, 8, "lies in the mendfs mount"},
		{"state in use", []string{"mount", "--state", s.state, other}, 16, "is the state directory of another"},
		{"umount of a path within", []string{"umount", filepath.Join(s.mnt, "sub")}, 16, "not a mountpoint"},
		{"doctor of the mount", []string{"lost", "--state", s.state, "/elsewhere"}, 16, "not below"},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, c.code, c.says, c.args...) })
	}
	s.umount()
}

// TestBadRanges is refused by the simulator, and changes nothing.
func TestBadRanges(t *testing.T) {
	s := newScene(t)
	existing := filepath.Join(s.backing, "existing")
	if err := os.WriteFile(existing, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	s.mount("--simulate", "dax")
	file := filepath.Join(s.mnt, "existing")
	refused(t, 16, "--on-real-files", "inject", file, "--range", "0+64")
	refused(t, 16, "past the end", "inject", file, "--range", "8k+1", "--on-real-files")
	refused(t, 16, "past the end", "inject", file, "--range", "0+64", "--range", "4096+4097", "--on-real-files")
	refused(t, 16, "regular file", "inject", s.mnt, "--range", "0+64", "--on-real-files")
	refused(t, 16, "", "inject", "--remove", "no-such-id", s.mnt)
	if out := want(t, 0, "inject", "--list", s.mnt); out != "" {
		t.Errorf("injected all the same: %s", out)
	}
	refused(t, 16, "there is no", "lost", "--state", s.state, "nope")
	s.umount()
	refused(t, 16, "there is no", "lost", "--state", s.state, "nope")
	refused(t, 16, "there is no", "lost", "--pending", "--state", s.state, "nope/deeper")
	refused(t, 8, "no mount is running", "events", "--follow", "--state", s.state)
}

// TestUmountBusy refuses as umount(8) does, and the mount lives on.
func TestUmountBusy(t *testing.T) {
	s := newScene(t)
	s.mount()
	f, err := os.Open(s.write("file", []byte("content")))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, 8, "in use", "umount", s.mnt)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.umount()
	var st unix.Statfs_t
	if err := unix.Statfs(s.mnt, &st); err != nil {
		t.Error(err)
	}
}
