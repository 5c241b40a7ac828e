package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// buildModule builds the module labbus for a kernel, in dir.
func buildModule(ctx context.Context, k kernel, dir string) (string, error) {
	dir = filepath.Join(dir, "labbus")
	if err := os.CopyFS(dir, os.DirFS("tests/lab/labbus")); err != nil {
		return "", err
	}
	// Debian's headers ask for the very compiler that the kernel was built with. Any
	// will do.
	cmd := exec.CommandContext(ctx, "make", "-C", k.headers, "M="+dir, "CC=gcc", "modules")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=") // those of `make lab` are not meant for this
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the module labbus for %s: %w\n%s", k.release, err, out)
	}
	return filepath.Join(dir, "labbus.ko"), nil
}
