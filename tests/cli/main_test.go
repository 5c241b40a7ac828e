// Package cli shows the command line through the real binary: what a mount
// does from its first line to its end, and what each verb says to bad input.
package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector

	exitOK          = 0
	exitOperational = 8
	exitUsage       = 16
)

type rng = harness.Range

func TestMain(m *testing.M) { harness.Main(m) }

// refuses runs a verb that must refuse: with this exit status, nothing on
// stdout, and one line on stderr that has the words and a next step.
func refuses(t *testing.T, exit int, words []string, args ...string) {
	t.Helper()
	refused(t, harness.Mendfs(t, args...), exit, words, args...)
}

func refused(t *testing.T, r harness.Result, exit int, words []string, args ...string) {
	t.Helper()
	line, rest, _ := strings.Cut(r.Stderr, "\n")
	if r.Exit != exit || r.Stdout != "" || rest != "" {
		t.Errorf("mendfs %q: exit %d, stdout %q, stderr %q, want exit %d and one line on stderr", args, r.Exit, r.Stdout, r.Stderr, exit)
	}
	if !strings.HasPrefix(line, "mendfs") || !strings.Contains(line, "; ") {
		t.Errorf("mendfs %q: %q names no next step behind a semicolon", args, line)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("mendfs %q: %q does not say %q", args, line, word)
		}
	}
}

// tree is everything in a directory: names, types, and the content of files.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		all.WriteString(path + " " + d.Type().String())
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all.Write(data)
		}
		all.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func mkdir(t *testing.T, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
