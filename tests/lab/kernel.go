package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// series are the kernels to choose from, by the suites of Debian that carry
// them. The newest package of the series is taken, once, and kept.
var series = map[string][]string{
	"6.12": {"debian bookworm-backports"},
	"6.1":  {"debian bookworm", "debian-security bookworm-security"},
}

// parts is what the guest may need of a kernel package: to unpack all takes a
// minute more where the machine is busy.
var parts = []string{
	"./boot/vmlinuz-*", "./lib/modules/*/modules.builtin*", "./lib/modules/*/modules.order",
	"./lib/modules/*/kernel/fs/*", "./lib/modules/*/kernel/lib/*", "./lib/modules/*/kernel/crypto/*",
	"./lib/modules/*/kernel/arch/x86/crypto/*", "./lib/modules/*/kernel/drivers/nvdimm/*",
	"./lib/modules/*/kernel/drivers/dax/*", "./lib/modules/*/kernel/drivers/acpi/*",
	"./lib/modules/*/kernel/drivers/md/*", "./lib/modules/*/kernel/drivers/block/loop*",
}

// buildParts is what is needed of the other packages, to build a module.
var buildParts = []string{"./usr/*"}

// kernel is an unpacked kernel package.
type kernel struct {
	release string // as uname -r says it
	image   string
	modules string // the directory lib/modules/RELEASE
	headers string // the directory that modules for it are built in
}

// fetchKernel is the kernel of a series: from the cache, or from Debian.
func fetchKernel(ctx context.Context, cache, name string) (kernel, error) {
	suites, ok := series[name]
	if !ok {
		return kernel{}, fmt.Errorf("no kernel series %q; there are 6.12 and 6.1", name)
	}
	dir := filepath.Join(cache, name)
	packages, sum, err := cachedPackages(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = download(ctx, dir, suites); err == nil {
			packages, sum, err = cachedPackages(dir)
		}
	}
	if err != nil {
		return kernel{}, fmt.Errorf("getting a kernel %s: %w", name, err)
	}
	tree := filepath.Join(dir, "tree-"+sum[:16])
	if _, err := os.Stat(tree); errors.Is(err, fs.ErrNotExist) {
		if err := unpack(packages, tree); err != nil {
			return kernel{}, fmt.Errorf("unpacking %s: %w", dir, err)
		}
	}
	return kernelIn(tree)
}

// unpack puts the parts of the packages into tree, with the modules unpacked and their
// dependencies known, and headers that need not be in /usr/src.
func unpack(packages []string, tree string) error {
	half := tree + ".half"
	if err := errors.Join(os.RemoveAll(half), os.MkdirAll(half, 0o755)); err != nil {
		return err
	}
	for _, pkg := range packages {
		wanted := buildParts
		if strings.HasPrefix(filepath.Base(pkg), "linux-image-") {
			wanted = parts
		}
		if err := extract(pkg, half, wanted); err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
	}
	err := script(half, `
		find lib/modules -name '*.ko.xz' -exec xz -d {} +
		for modules in lib/modules/*; do PATH=$PATH:/sbin:/usr/sbin depmod -b . "${modules##*/}"; done
		sed -i 's,/usr/src/,../,' usr/src/linux-headers-*/Makefile`)
	if err != nil {
		return err
	}
	return os.Rename(half, tree)
}

// extract puts parts of a package into dir. Without the vmlinux that comes with the
// headers, a build makes no types for debuggers, and needs no pahole for it.
func extract(pkg, dir string, parts []string) error {
	return script(dir, `dpkg-deb --fsys-tarfile "$0" | tar -x --no-same-owner --exclude=vmlinux --wildcards "$@"`, append([]string{pkg}, parts...)...)
}

// script runs a text of bash's in dir with the arguments, beginning with $0.
func script(dir, text string, args ...string) error {
	cmd := exec.Command("bash", append([]string{"-euo", "pipefail", "-c", text}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func kernelIn(tree string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernels in %s: %w", len(images), tree, err)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return kernel{
		release: release,
		image:   images[0],
		modules: filepath.Join(tree, "lib/modules", release),
		headers: filepath.Join(tree, "usr/src/linux-headers-"+release),
	}, nil
}
