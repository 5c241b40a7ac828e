package doctor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func nothing(string) State { return State{} }

// TestExamineChangesNothing takes every timestamp, mode and name of a backing
// directory before and after.
func TestExamineChangesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	findings, err := Examine(dir, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	checkFindings(t, findings)
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, path := range []string{dir, filepath.Join(dir, "file")} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		for _, ts := range []unix.Timespec{st.Atim, st.Mtim, st.Ctim} {
			b.WriteString(path + " " + stamp(ts) + "\n")
		}
	}
	return b.String()
}

func stamp(ts unix.Timespec) string { return itoa(ts.Sec) + "." + itoa(ts.Nsec) }

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestExamineRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"missing": file + "-not", "a file": file, "below a file": file + "/x"} {
		t.Run(name, func(t *testing.T) {
			if findings, err := Examine(path, nothing); err == nil {
				t.Errorf("got %d findings, want an error", len(findings))
			}
		})
	}
}

// TestExamineFindsDirectUsers has a file open in this process's child.
func TestExamineFindsDirectUsers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file with spaces")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	child, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Files: []*os.File{f, nil, nil}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
		_ = f.Close()
	}()
	got := find(t, mustExamine(t, dir), "direct users")
	if got.Verdict != Limited || !strings.Contains(got.Found, itoa(int64(child.Pid))) {
		t.Errorf("%+v does not name pid %d", got, child.Pid)
	}
}

// TestExamineFindsBindMounts needs root, as mounting does.
func TestExamineFindsBindMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("bind mounts need root")
	}
	dir, at := t.TempDir(), t.TempDir()
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("bind mount: %v", err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	got := find(t, mustExamine(t, dir), "other paths")
	if got.Verdict != Limited || !strings.Contains(got.Found, at) {
		t.Errorf("%+v does not name %s", got, at)
	}
}

func mustExamine(t *testing.T, dir string) []Finding {
	t.Helper()
	findings, err := Examine(dir, nothing)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

func find(t *testing.T, findings []Finding, check string) Finding {
	t.Helper()
	for _, f := range findings {
		if f.Check == check {
			return f
		}
	}
	t.Fatalf("no finding %q", check)
	return Finding{}
}
