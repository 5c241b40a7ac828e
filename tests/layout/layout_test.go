// Package layout holds what the layout of the project promises: which way
// imports go, and that there is no C in it.
package layout

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mendfs/mendfs/"

type pkg struct {
	ImportPath             string
	Imports, Deps          []string
	TestImports, CgoFiles  []string
	XTestImports, GoFiles  []string
	CFiles, SFiles, HFiles []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	var all []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("%s lists only %d packages", cmd, len(all))
	}
	return all
}

// root is the first directory of a package of ours, "" for others' packages.
func root(path string) string {
	rel, ours := strings.CutPrefix(path, module)
	if !ours {
		return ""
	}
	first, _, _ := strings.Cut(rel, "/")
	return first
}

// Imports go cmd → mount → fs → recovery, never back. Tests may import what they test.
func TestImportDirection(t *testing.T) {
	order := []string{"recovery", "fs", "mount", "cmd", "tests"}
	for _, p := range packages(t) {
		from := slices.Index(order, root(p.ImportPath))
		if from < 0 {
			t.Errorf("%s lies outside of %v", p.ImportPath, order)
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if to := slices.Index(order, root(imported)); to > from {
				t.Errorf("%s imports %s: imports go %v, from right to left", p.ImportPath, imported, order)
			}
		}
	}
}

func TestRecoveryKnowsNothingOfFUSE(t *testing.T) {
	for _, p := range packages(t) {
		if root(p.ImportPath) != "recovery" {
			continue
		}
		for _, dep := range p.Deps {
			if strings.Contains(dep, "go-fuse") {
				t.Errorf("%s depends on %s", p.ImportPath, dep)
			}
		}
	}
}

// The engine must do as well over media that this project did not write.
func TestEngineKnowsNothingOfTheSimulator(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath == module+"recovery" && slices.Contains(p.Deps, module+"recovery/media/sim") {
			t.Errorf("%s depends on the simulator", p.ImportPath)
		}
	}
}

func TestNoC(t *testing.T) {
	for _, p := range packages(t) {
		if c := slices.Concat(p.CgoFiles, p.CFiles, p.SFiles, p.HFiles); len(c) > 0 {
			t.Errorf("%s has %v", p.ImportPath, c)
		}
	}
}
