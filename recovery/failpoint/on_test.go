//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSetTellsOfEachStep(t *testing.T) {
	var p Points
	var told []Step
	p.Hit(IntentDurable)
	p.Set(func(s Step) { told = append(told, s) })
	p.Hit(PagesWritten)
	p.Hit(IntentClosed)
	p.Set(nil)
	p.Hit(PagesDurable)
	if want := []Step{PagesWritten, IntentClosed}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
}

func TestOrders(t *testing.T) {
	for text, ok := range map[string]bool{
		"": true, "pages-written:3": true, "any:1": true,
		"pages-written": false, "pages-written:0": false, "pages-written:x": false, "nothing:1": false, ":1": false,
	} {
		if _, err := parse(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestKillsItself runs this test in a process of its own, which dies at its
// third step and not before.
func TestKillsItself(t *testing.T) {
	if os.Getenv("MENDFS_FAILPOINT") != "" {
		var p Points
		p.Hit(PageCleared)
		p.Hit(PagesWritten)
		p.Hit(PagesWritten)
		if _, err := os.Stdout.WriteString("alive\n"); err != nil {
			t.Fatal(err)
		}
		p.Hit(PagesWritten)
		t.Fatal("still alive")
	}
	for order, alive := range map[string]bool{"pages-written:3": true, "any:3": false} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillsItself$")
		cmd.Env = append(os.Environ(), "MENDFS_FAILPOINT="+order)
		out, err := cmd.Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
			t.Errorf("%s: %v, want death by SIGKILL", order, err)
		}
		if (string(out) == "alive\n") != alive {
			t.Errorf("%s: it said %q", order, out)
		}
	}
}
