package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

//go:embed init
var initScript []byte

// modules are what the guest loads, if its kernel has them as modules.
var modules = []string{"nd_e820", "nd_pmem", "dax_pmem", "ext4", "xfs", "fuse", "loop", "quota_v2", "dm_mod", "crc32c_generic", "crc32c_intel", "nfit"}

// tools are programs of this machine that the guest has beside busybox.
var tools = []string{
	"mkfs.ext4", "mkfs.xfs", "xfs_io", "bash", "mount", "umount", "findmnt", "setpriv", "losetup", "dd", "stat", "ls", "fallocate", "truncate",
}

// initramfs puts together what the guest boots into. Programs are by the names that
// they have in the guest.
func initramfs(k kernel, programs map[string]string) (archive, error) {
	a := archive{"init": {0o755, initScript}}
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "mnt", "root", "var/lib", "etc"} {
		a.add(dir, entry{mode: fs.ModeDir | 0o755})
	}
	a.add("etc/passwd", entry{0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")})
	a.add("etc/group", entry{0o644, []byte("root:x:0:\n")})
	if err := a.addFile("etc/mke2fs.conf", "/etc/mke2fs.conf"); err != nil {
		return nil, err
	}
	if err := a.addProgram("bin/busybox", "busybox"); err != nil {
		return nil, err
	}
	for _, tool := range tools {
		if err := a.addProgram("usr/sbin/"+tool, tool); err != nil {
			return nil, err
		}
	}
	for name, path := range programs {
		if err := a.addFile("usr/sbin/"+name, path); err != nil {
			return nil, err
		}
	}
	return a, a.addModules(k)
}

func (a archive) addFile(name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.add(name, entry{0o755, data})
	return nil
}

// addProgram adds a program of this machine with the libraries that it loads.
func (a archive) addProgram(name, program string) error {
	path, err := lookPath(program)
	if err != nil {
		return err
	}
	if err := a.addFile(name, path); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "not a dynamic executable") {
		return fmt.Errorf("ldd %s: %w: %s", path, err, out)
	}
	for _, library := range regexp.MustCompile(`/\S+\.so\S*`).FindAllString(string(out), -1) {
		if err := a.addFile(strings.TrimPrefix(library, "/"), library); err != nil {
			return err
		}
	}
	return nil
}

// lookPath finds administrators' programs too where they are not on the PATH.
func lookPath(program string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return exec.LookPath(program)
}

// addModules adds the modules that the guest loads and all that they need. A module
// that is not there is built into this kernel.
func (a archive) addModules(k kernel) error {
	needs, err := readModulesDep(filepath.Join(k.modules, "modules.dep"))
	if err != nil {
		return err
	}
	base := "lib/modules/" + k.release + "/"
	for _, module := range modules {
		for _, file := range needs[module] {
			if err := a.addFile(base+file, filepath.Join(k.modules, file)); err != nil {
				return err
			}
		}
	}
	return a.addFile(base+"modules.dep", filepath.Join(k.modules, "modules.dep"))
}

// readModulesDep is, by the name of a module, the files of it and of what it needs.
func readModulesDep(path string) (map[string][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needs := map[string][]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		file, others, _ := strings.Cut(lines.Text(), ":")
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
		needs[name] = append([]string{file}, strings.Fields(others)...)
	}
	return needs, lines.Err()
}
