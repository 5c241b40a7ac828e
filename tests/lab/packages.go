package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// downloadTime is what the archive may need for its lists and packages of 120 MB.
const downloadTime = 5 * time.Minute

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// sumsFile names the packages of a directory with their checksums, as sha256sum
// prints them. It is written when all are there.
const sumsFile = "SHA256SUMS"

// cachedPackages is the packages in dir, whose checksums are those that apt had for
// them when they were fetched, and the checksum of the list of them.
func cachedPackages(dir string) (packages []string, sum string, err error) {
	list := filepath.Join(dir, sumsFile)
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, "", err
	}
	for line := range strings.Lines(string(text)) {
		want, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		pkg := filepath.Join(dir, name)
		switch got, err := checksum(pkg); {
		case err != nil:
			return nil, "", err
		case got != want:
			return nil, "", fmt.Errorf("%s has the checksum %s, not %s: %w", pkg, got, want, fs.ErrNotExist)
		}
		packages = append(packages, pkg)
	}
	sum, err = checksum(list)
	return packages, sum, err
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// download has apt fetch the newest kernel package of the suites into dir, and what
// modules for it are built with. Apt checks the signatures; its lists and caches are
// our own, so that nothing of the machine changes.
func download(ctx context.Context, dir string, suites []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, downloadTime, fmt.Errorf("the archive of Debian took more than %v; try again later", downloadTime))
	defer cancel()
	apt, err := newApt(filepath.Join(dir, "apt"), suites)
	if err != nil {
		return err
	}
	if _, err := apt.run(ctx, "apt-get", "-qq", "update"); err != nil {
		return err
	}
	if err := removeOld(dir); err != nil {
		return err
	}
	names, err := apt.kernelPackages(ctx)
	if err != nil {
		return fmt.Errorf("in %v: %w", suites, err)
	}
	uris, err := apt.run(ctx, "apt-get", append([]string{"download", "--print-uris"}, names...)...)
	if err != nil {
		return err
	}
	sums, err := sumsOf(uris)
	if err != nil {
		return err
	}
	if _, err := apt.run(ctx, "apt-get", append([]string{"-qq", "download"}, names...)...); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), []byte(sums), 0o644)
}

// removeOld takes away older packages, of which apt would name no checksum, and what was
// unpacked of them.
func removeOld(dir string) error {
	var err error
	for _, kind := range []string{"*.deb*", "tree-*"} {
		old, bad := filepath.Glob(filepath.Join(dir, kind))
		err = errors.Join(err, bad)
		for _, path := range old {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// sumsOf is the lines of sumsFile for what apt says of packages: 'URI' FILE SIZE SHA256:SUM.
func sumsOf(uris string) (string, error) {
	var sums strings.Builder
	for line := range strings.Lines(uris) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[3], "SHA256:") {
			return "", fmt.Errorf("apt names no checksum: %s", line)
		}
		fmt.Fprintf(&sums, "%s  %s\n", strings.TrimPrefix(fields[3], "SHA256:"), fields[1])
	}
	return sums.String(), nil
}

// kernelPackages is the names of the newest kernel's package, of its headers, and of
// the programs that build with them.
func (a *apt) kernelPackages(ctx context.Context) ([]string, error) {
	kernel, err := a.dependsOn(ctx, "linux-image-amd64", `linux-image-[0-9]\S*`)
	if err != nil {
		return nil, err
	}
	headers := strings.Replace(kernel[0], "image", "headers", 1)
	more, err := a.dependsOn(ctx, headers, `linux-(headers-[0-9]\S*-common|kbuild-)\S*`)
	return slices.Concat(kernel[:1], []string{headers}, more), err
}

// dependsOn is those of the packages that name depends on that match the pattern: one at
// least.
func (a *apt) dependsOn(ctx context.Context, name, pattern string) ([]string, error) {
	depends, err := a.run(ctx, "apt-cache", "depends", name)
	if err != nil {
		return nil, err
	}
	found := regexp.MustCompile(pattern).FindAllString(depends, -1)
	if len(found) == 0 {
		return nil, fmt.Errorf("%s depends on no %s: %s", name, pattern, depends)
	}
	return found, nil
}

// apt runs apt's programs with state of their own.
type apt struct {
	dir     string
	options []string
}

func newApt(dir string, suites []string) (*apt, error) {
	for _, program := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("the kernel comes as a Debian package: %w", err)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("no keys of Debian, install debian-archive-keyring: %w", err)
	}
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	var sources strings.Builder
	for _, suite := range suites {
		archive, name, _ := strings.Cut(suite, " ")
		fmt.Fprintf(&sources, "deb [arch=amd64 signed-by=%s] http://deb.debian.org/%s %s main\n", keyring, archive, name)
	}
	list := filepath.Join(dir, "sources.list")
	a := &apt{dir: dir, options: []string{
		"-o", "Dir::State=" + filepath.Join(dir, "state"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root", "-o", "APT::Architecture=amd64",
		"-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=3",
	}}
	return a, os.WriteFile(list, []byte(sources.String()), 0o644)
}

func (a *apt) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, slices.Concat(a.options, args)...)
	cmd.WaitDelay = time.Second // apt's own helpers notice a little later
	cmd.Dir = filepath.Dir(a.dir)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", program, strings.Join(args, " "), errors.Join(context.Cause(ctx), err), out, said.String())
	}
	return string(out), nil
}
