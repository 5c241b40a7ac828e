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

// series are the kernels to choose from, by the suites of Debian that carry
// them. The newest package of the series is taken, once, and kept.
var series = map[string][]string{
	"6.12": {"debian bookworm-backports"},
	"6.1":  {"debian bookworm", "debian-security bookworm-security"},
}

// downloadTime is what the archive may need for its lists and a package of 106 MB.
const downloadTime = 5 * time.Minute

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// parts is what the guest may need of a kernel package: to unpack all takes a
// minute more where the machine is busy.
var parts = []string{
	"./boot/vmlinuz-*", "./lib/modules/*/modules.builtin*", "./lib/modules/*/modules.order",
	"./lib/modules/*/kernel/fs/*", "./lib/modules/*/kernel/lib/*", "./lib/modules/*/kernel/crypto/*",
	"./lib/modules/*/kernel/arch/x86/crypto/*", "./lib/modules/*/kernel/drivers/nvdimm/*",
	"./lib/modules/*/kernel/drivers/dax/*", "./lib/modules/*/kernel/drivers/acpi/*",
	"./lib/modules/*/kernel/drivers/md/*", "./lib/modules/*/kernel/drivers/block/loop*",
}

// kernel is an unpacked kernel package.
type kernel struct {
	release string // as uname -r says it
	image   string
	modules string // the directory lib/modules/RELEASE
}

// fetchKernel is the kernel of a series: from the cache, or from Debian.
func fetchKernel(ctx context.Context, cache, name string) (kernel, error) {
	suites, ok := series[name]
	if !ok {
		return kernel{}, fmt.Errorf("no kernel series %q; there are 6.12 and 6.1", name)
	}
	dir := filepath.Join(cache, name)
	pkg, sum, err := cachedPackage(dir)
	if errors.Is(err, fs.ErrNotExist) {
		pkg, sum, err = download(ctx, dir, suites)
	}
	if err != nil {
		return kernel{}, fmt.Errorf("getting a kernel %s: %w", name, err)
	}
	tree := filepath.Join(dir, "tree-"+sum[:16])
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		if err := unpack(pkg, tree); err != nil {
			return kernel{}, fmt.Errorf("unpacking %s: %w", pkg, err)
		}
	}
	return kernelIn(tree)
}

// cachedPackage is the package in dir whose checksum is the one that apt had
// for it when it was fetched, and that checksum.
func cachedPackage(dir string) (pkg, sum string, err error) {
	sums, err := filepath.Glob(filepath.Join(dir, "*.sha256"))
	if err != nil {
		return "", "", err
	}
	for _, s := range sums {
		want, err := os.ReadFile(s)
		if err != nil {
			return "", "", err
		}
		pkg = strings.TrimSuffix(s, ".sha256")
		if sum, err := checksum(pkg); err == nil && sum == string(want) {
			return pkg, sum, nil
		}
	}
	return "", "", fs.ErrNotExist
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

// download has apt fetch the newest kernel package of the suites into dir. Apt
// checks the signatures; its lists and caches are our own, so that nothing of
// the machine changes.
func download(ctx context.Context, dir string, suites []string) (pkg, sum string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, downloadTime, fmt.Errorf("the archive of Debian took more than %v; try again later", downloadTime))
	defer cancel()
	apt, err := newApt(filepath.Join(dir, "apt"), suites)
	if err != nil {
		return "", "", err
	}
	if _, err := apt.run(ctx, "apt-get", "-qq", "update"); err != nil {
		return "", "", err
	}
	depends, err := apt.run(ctx, "apt-cache", "depends", "linux-image-amd64")
	if err != nil {
		return "", "", err
	}
	name := regexp.MustCompile(`linux-image-[0-9]\S*`).FindString(depends)
	if name == "" {
		return "", "", fmt.Errorf("linux-image-amd64 of %v depends on no kernel: %s", suites, depends)
	}
	uris, err := apt.run(ctx, "apt-get", "download", "--print-uris", name)
	if err != nil {
		return "", "", err
	}
	fields := strings.Fields(uris) // 'URI' FILE SIZE SHA256:SUM
	if len(fields) < 4 || !strings.HasPrefix(fields[3], "SHA256:") {
		return "", "", fmt.Errorf("apt names no checksum for %s: %s", name, uris)
	}
	pkg, sum = filepath.Join(dir, fields[1]), strings.TrimPrefix(fields[3], "SHA256:")
	if _, err := apt.run(ctx, "apt-get", "-qq", "download", name); err != nil {
		return "", "", err
	}
	if got, err := checksum(pkg); err != nil || got != sum {
		return "", "", fmt.Errorf("%s has the checksum %s, not %s: %w", pkg, got, sum, err)
	}
	return pkg, sum, os.WriteFile(pkg+".sha256", []byte(sum), 0o644)
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

// unpack puts the parts of a package into tree, with its modules unpacked and
// their dependencies known.
func unpack(pkg, tree string) error {
	half := tree + ".half"
	if err := errors.Join(os.RemoveAll(half), os.MkdirAll(half, 0o755)); err != nil {
		return err
	}
	script := `
		set -euo pipefail
		pkg=$1 half=$2; shift 2
		dpkg-deb --fsys-tarfile "$pkg" | tar -C "$half" -x --no-same-owner --wildcards "$@"
		find "$half/lib/modules" -name '*.ko.xz' -exec xz -d {} +
		cd "$half" && for modules in lib/modules/*; do PATH=$PATH:/sbin:/usr/sbin depmod -b . "${modules##*/}"; done`
	cmd := exec.Command("bash", slices.Concat([]string{"-c", script, "unpack", pkg, half}, parts)...)
	if out, err := cmd.CombinedOutput(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.Rename(half, tree)
}

func kernelIn(tree string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernels in %s: %w", len(images), tree, err)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return kernel{release, images[0], filepath.Join(tree, "lib/modules", release)}, nil
}
