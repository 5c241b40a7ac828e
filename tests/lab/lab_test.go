package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPackagesThatAreNotAllThereAreFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "linux.deb"), "kernel")
	write(t, filepath.Join(dir, "headers.deb"), "headers")
	if _, _, err := cachedPackages(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no list: %v", err)
	}
	sums, err := sumsOf("'http://deb/linux.deb' linux.deb 6 SHA256:50ee7cad7b5d8da2b2d0bbc8c4e8a7a7ed3eab1a0a4d1eb0d9a5b5c6e2e9c0a1\n")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, sumsFile), sums)
	if _, _, err := cachedPackages(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a package with another checksum: %v", err)
	}
	var right strings.Builder
	for _, name := range []string{"linux.deb", "headers.deb"} {
		sum, err := checksum(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&right, "%s  %s\n", sum, name)
	}
	write(t, filepath.Join(dir, sumsFile), right.String())
	want := []string{filepath.Join(dir, "linux.deb"), filepath.Join(dir, "headers.deb")}
	if got, _, err := cachedPackages(dir); !slices.Equal(got, want) || err != nil {
		t.Errorf("the right checksums: %q, %v", got, err)
	}
	if err := os.Remove(want[1]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cachedPackages(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a package is missing: %v", err)
	}
}

func TestPackageWithoutChecksumIsRefused(t *testing.T) {
	if sums, err := sumsOf("'http://deb/linux.deb' linux.deb 6 \n"); err == nil {
		t.Errorf("its sums are %q", sums)
	}
}

func TestModulesNeedOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "modules.dep")
	write(t, path, "kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko kernel/crypto/a.ko\nkernel/lib/crc32c-x.ko:\n")
	needs, err := readModulesDep(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"kernel/fs/xfs/xfs.ko", "kernel/lib/libcrc32c.ko", "kernel/crypto/a.ko"}; !slices.Equal(needs["xfs"], want) {
		t.Errorf("xfs needs %v", needs["xfs"])
	}
	if want := []string{"kernel/lib/crc32c-x.ko"}; !slices.Equal(needs["crc32c_x"], want) {
		t.Errorf("crc32c_x needs %v", needs["crc32c_x"])
	}
}

func TestModuleThatDoesNotBuildSaysWhy(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "make"), "#!/bin/sh\necho \"$MAKEFLAGS|$2|$3: no such header\"; exit 2\n")
	if err := os.Chmod(filepath.Join(dir, "make"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("MAKEFLAGS", "KERNEL=6.1")
	t.Chdir("../..")
	_, err := buildModule(t.Context(), kernel{release: "6.1.0-56", headers: "/headers"}, dir)
	if want := "|/headers|M=" + filepath.Join(dir, "labbus") + ": no such header"; err == nil || !strings.Contains(err.Error(), "6.1.0-56") || !strings.Contains(err.Error(), want) {
		t.Errorf("it says %v, want %s", err, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "labbus", "labbus.c")); err != nil {
		t.Error(err)
	}
}

// TestArchiveIsAligned holds what the kernel wants: each header and each content
// begins at a multiple of four, and directories stand before what is in them.
func TestArchiveIsAligned(t *testing.T) {
	a := archive{}
	a.add("bin/x", entry{0o755, []byte("12345")})
	var out bytes.Buffer
	if err := a.writeTo(&out); err != nil {
		t.Fatal(err)
	}
	text := out.Bytes()
	at := func(s string) int { return bytes.Index(text, []byte(s)) }
	if len(text)%4 != 0 || at("12345")%4 != 0 || bytes.LastIndex(text, []byte("070701"))%4 != 0 {
		t.Errorf("not aligned: %q", text)
	}
	if dir, file := at("bin\x00"), at("bin/x\x00"); dir < 0 || file < dir || at("TRAILER!!!") < file {
		t.Errorf("wrong order: %q", text)
	}
}

func TestFactsAreComparedBothWays(t *testing.T) {
	t.Chdir(t.TempDir())
	l := &lab{series: "6.12"}
	if err := os.MkdirAll(filepath.Dir(l.factsFile()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.writeFacts([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		facts []string
		same  bool
	}{
		{[]string{"a", "b"}, true}, {[]string{"a"}, false}, {[]string{"a", "b", "c"}, false}, {[]string{"a", "c"}, false}, {nil, false},
	} {
		if err := l.compare(c.facts); (err == nil) != c.same {
			t.Errorf("%v: %v", c.facts, err)
		}
	}
}

// pretendQEMU has a script run in place of QEMU. $n is how often it has run.
func pretendQEMU(t *testing.T, script string) guest {
	t.Helper()
	dir := t.TempDir()
	console := filepath.Join(dir, "console")
	write(t, console, "int3\n")
	write(t, filepath.Join(dir, qemu), "#!/bin/sh\necho >>"+dir+"/runs; n=$(wc -l <"+dir+"/runs)\n"+script)
	if err := os.Chmod(filepath.Join(dir, qemu), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return guest{console: console}
}

func TestGuestThatNeverCameUpIsBootedOnceMore(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"comes up", `echo lab: up $n`, "lab: up 1"},
		{"the second time", `[ $n = 1 ] || echo lab: up $n`, "lab: up 2"},
		{"never", `echo $n`, "1 2"},
		{"up, then it dies", `echo lab: up $n; exit 1`, "lab: up 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := pretendQEMU(t, c.script)
			var said []string
			_, _ = (&part{lab: &lab{}, guest: g}).boot(t.Context(), func(line string) { said = append(said, line) })
			if got := strings.Join(said, " "); got != c.want {
				t.Errorf("it said %q, want %q", got, c.want)
			}
		})
	}
}

func TestGuestThatHangsIsEnded(t *testing.T) {
	g := pretendQEMU(t, `echo lab: up; exec sleep 3600`)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	late := errors.New("late")
	_, err := (&part{lab: &lab{begin: time.Now()}, guest: g}).boot(ctx, func(string) { cancel(late) })
	if !errors.Is(err, late) {
		t.Errorf("it ended with %v", err)
	}
}
