package cli

import (
	"os"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// Poison belongs to the file, and to the state directory.
func TestPoisonSurvivesRenameAndRemount(t *testing.T) {
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 8*page)
	bad := rng{Off: 2 * page, Len: sector}
	m.Inject("f", bad)
	mkdir(t, m.Path("dir"))
	if err := os.Rename(m.Path("f"), m.Path("dir/g")); err != nil {
		t.Fatal(err)
	}
	m.Check("dir/g", data, bad)
	m.Restart()
	m.Check("dir/g", data, bad)
	if left := m.Poison("dir/g"); !left.Overlaps(bad) {
		t.Errorf("what is left of the poison: %v", left)
	}
	if r := harness.Mendfs(t, "inject", "--clear", m.At); r.Exit != exitOK {
		t.Errorf("inject --clear: exit %d: %s", r.Exit, r.Stderr)
	}
	if left := m.Poison("dir/g"); !left.Empty() {
		t.Errorf("after --clear is left: %v", left)
	}
}

func TestRandomPoisonIsTheSameForASeed(t *testing.T) {
	var first string
	for range 2 {
		m := harness.Simulated(t, "dax")
		m.File("f", 1, 32*page)
		if r := harness.Mendfs(t, "inject", m.At, "--random", "10", "--seed", "7"); r.Exit != exitOK {
			t.Fatalf("inject: exit %d: %s", r.Exit, r.Stderr)
		}
		poison := m.Poison("f").String()
		if first == "" {
			first = poison
		}
		if poison != first || poison == "{}" {
			t.Errorf("the poison is %s, and was %s", poison, first)
		}
	}
}

func TestDemo(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root)
	t.Setenv("TMPDIR", harness.Dir(t))
	r := harness.Mendfs(t, "demo")
	if r.Exit != exitOK {
		t.Errorf("exit %d: %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("the demo leaves %v, %v", left, err)
	}
}
