package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayMap is the files that may map something, and why. None of them maps a file of the
// backing: the kernel's copy from such a mapping can stop the machine, and a load from
// it is a SIGBUS (design 5).
var mayMap = map[string]string{}

// mappings are the names by which a Go program can get at mmap(2).
var mappings = []string{"Mmap", "MmapPtr", "SYS_MMAP", "SYS_MMAP2", "SYS_REMAP_FILE_PAGES", "Mremap", "MremapPtr", "SYS_MREMAP"}

// mapsIn is where a file of Go maps something.
func mapsIn(files *token.FileSet, name string, source any) (at []token.Position, err error) {
	file, err := parser.ParseFile(files, name, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	system := map[string]bool{} // names of the packages that have system calls
	for _, imported := range file.Imports {
		path, err := strconv.Unquote(imported.Path.Value)
		if err != nil {
			return nil, err
		}
		if path != "golang.org/x/sys/unix" && path != "syscall" && path != "internal/syscall/unix" {
			continue
		}
		name := filepath.Base(path)
		if imported.Name != nil {
			name = imported.Name.Name
		}
		system[name] = true
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.SelectorExpr)
		if !ok || !slices.Contains(mappings, call.Sel.Name) {
			return true
		}
		if pkg, ok := call.X.(*ast.Ident); ok && system[pkg.Name] {
			at = append(at, files.Position(call.Pos()))
		}
		return true
	})
	return at, nil
}

// Neither the FUSE layer nor the engine maps files, in no build.
func TestNothingIsMapped(t *testing.T) {
	asked := 0
	for _, p := range packages(t) {
		if r := root(p.ImportPath); r != "fs" && r != "recovery" {
			continue
		}
		dir := filepath.Join("..", "..", strings.TrimPrefix(p.ImportPath, module))
		names, err := filepath.Glob(filepath.Join(dir, "*.go")) // whatever their build tags
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			asked++
			at, err := mapsIn(token.NewFileSet(), name, nil)
			if err != nil {
				t.Fatal(err)
			}
			file, err := filepath.Rel(filepath.Join("..", ".."), name)
			if err != nil {
				t.Fatal(err)
			}
			if len(at) > 0 && mayMap[filepath.ToSlash(file)] == "" {
				t.Errorf("%v maps something; if it is no file of the backing, say so in mayMap", at)
			}
		}
	}
	if asked < 50 {
		t.Errorf("only %d files were looked at", asked)
	}
}

// The test above sees a mapping, whatever the import is called.
func TestMappingsAreSeen(t *testing.T) {
	for source, want := range map[string]int{
		`import "golang.org/x/sys/unix"; var f = unix.Mmap`:                             1,
		`import "syscall"; func f() { syscall.Mmap(0, 0, 1, 0, 0) }`:                    1,
		`import sys "golang.org/x/sys/unix"; func f() { sys.Syscall6(sys.SYS_MMAP) }`:   1,
		`import "golang.org/x/sys/unix"; func f() { unix.MmapPtr(); unix.MremapPtr() }`: 2,
		`import "golang.org/x/sys/unix"; type t struct{ Mmap int }; var f = t{}.Mmap`:   0,
		`import "golang.org/x/sys/unix"; func f() { unix.Munmap(nil); unix.Pread() }`:   0,
		`import "example.org/mapper"; func f() { mapper.Mmap() }`:                       0,
	} {
		at, err := mapsIn(token.NewFileSet(), "x.go", "package x; "+source)
		if err != nil || len(at) != want {
			t.Errorf("%s: %v, %v; want %d", source, at, err, want)
		}
	}
}
