package state

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// block is a line of a mapfile.
type block struct {
	rng
	status byte
}

// parseMapfile holds a text to GNU ddrescue's manual, "Mapfile structure": comments,
// the status line, and blocks that follow each other without a gap, the status of
// each another than that of the one before.
func parseMapfile(t *testing.T, text string) []block {
	t.Helper()
	status := regexp.MustCompile(`^0x[0-9A-F]+ +[?*/\-FG+] +[0-9]+$`)
	line := regexp.MustCompile(`^(0x[0-9A-F]+) +(0x[0-9A-F]+) +([?*/\-+])$`)
	var blocks []block
	first := true
	for _, l := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(l, "#") {
			continue
		}
		if first {
			if first = false; !status.MatchString(l) {
				t.Fatalf("%q is no status line", l)
			}
			continue
		}
		f := line.FindStringSubmatch(l)
		if f == nil {
			t.Fatalf("%q is no block", l)
		}
		off, err1 := strconv.ParseInt(f[1], 0, 64)
		size, err2 := strconv.ParseInt(f[2], 0, 64)
		b := block{rng{Off: off, Len: size}, f[3][0]}
		if err1 != nil || err2 != nil || size <= 0 {
			t.Fatalf("%q: %v, %v", l, err1, err2)
		}
		at := int64(0)
		if n := len(blocks); n > 0 {
			at = blocks[n-1].End()
			if blocks[n-1].status == b.status {
				t.Errorf("two blocks with the status %c follow each other", b.status)
			}
		}
		if off != at {
			t.Errorf("a block begins at %d, and the one before ends at %d", off, at)
		}
		blocks = append(blocks, b)
	}
	return blocks
}

// mapfile asks for one, and has it checked by ddrescuelog where that is installed.
func mapfile(t *testing.T, exit int, args ...string) string {
	t.Helper()
	r := harness.Mendfs(t, append([]string{"lost", "--format", "mapfile"}, args...)...)
	if r.Exit != exit {
		t.Fatalf("%+v, want exit %d", r, exit)
	}
	if _, err := exec.LookPath("ddrescuelog"); err == nil {
		file := filepath.Join(harness.Dir(t), "map")
		harness.WriteFile(t, file, []byte(r.Stdout))
		if log := harness.Run(t, "ddrescuelog", "--show-status", file); log.Exit != 0 {
			t.Errorf("ddrescuelog: %+v", log)
		}
	}
	return r.Stdout
}

func TestMapfile(t *testing.T) {
	m := harness.Simulated(t, "line")
	m.File("a\nb", 1, 5*page+7)
	m.File("clean", 1, 100)
	m.File("empty", 1, 0)
	whole := rng{Len: 5*page + 7}
	for _, r := range []rng{{Off: 0, Len: 64}, {Off: 3 * page, Len: 128}, {Off: 5 * page, Len: 7}} {
		m.Inject("a\nb", r)
	}
	m.Sh(`cat ./* >/dev/null`)
	want := fmt.Sprint([]block{
		{rng{Off: 0, Len: 64}, '-'},
		{rng{Off: 64, Len: 3*page - 64}, '+'},
		{rng{Off: 3 * page, Len: 128}, '-'},
		{rng{Off: 3*page + 128, Len: 2*page - 128}, '+'},
		{rng{Off: 5 * page, Len: 7}, '-'},
	})
	if got := fmt.Sprint(parseMapfile(t, mapfile(t, exitLossLeft, m.Path("a\nb")))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := fmt.Sprint(parseMapfile(t, mapfile(t, exitLossLeft, "--state", m.State, "a\nb"))); got != want {
		t.Errorf("through --state: got %s, want %s", got, want)
	}
	for rel, n := range map[string]int{"clean": 1, "empty": 0} {
		if got := parseMapfile(t, mapfile(t, exitOK, m.Path(rel))); len(got) != n || n == 1 && got[0] != (block{rng{Len: 100}, '+'}) {
			t.Errorf("%s: %v", rel, got)
		}
	}
	// Zeros of a repair are as lost: one bytes written into the page leaves the rest.
	if err := m.WriteAt("a\nb", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	got := parseMapfile(t, mapfile(t, exitLossLeft|1, m.Path("a\nb")))
	if len(got) != 6 || got[1].rng != (rng{Off: 1, Len: 63}) || got[5].End() != whole.End() {
		t.Errorf("after a repair: %v", got)
	}
	for _, args := range [][]string{{m.At}, {"--state", m.State}, {"--state", m.State, "."}} {
		if r := harness.Mendfs(t, append([]string{"lost", "--format", "mapfile"}, args...)...); r.Exit != exitUsage || !strings.Contains(r.Stderr, "not a regular file") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	m.Stop()
	if got := parseMapfile(t, mapfile(t, exitLossLeft|1, "--state", m.State, m.Below("a\nb"))); len(got) != 6 {
		t.Errorf("when nothing is mounted: %v", got)
	}
}

// What is lost can be got back from a copy, byte by byte, with what ddrescue has for it.
func TestRefillWithDdrescue(t *testing.T) {
	harness.Need(t, harness.Program("ddrescue", "ddrescuelog"))
	m := harness.Simulated(t, "dax")
	data := m.File("f", 1, 20*page+100)
	copied := filepath.Join(harness.Dir(t), "copy")
	harness.WriteFile(t, copied, data)
	m.Inject("f", rng{Off: 0, Len: 64}, rng{Off: 7*page + 512, Len: 1024}, rng{Off: 20 * page, Len: 100})
	m.Drop("f")
	m.Sh(`cat f >/dev/null`)
	lost := filepath.Join(harness.Dir(t), "lost.map")
	harness.WriteFile(t, lost, []byte(mapfile(t, exitLossLeft, m.Path("f"))))
	m.Sh(`ddrescuelog --invert-mapfile "$1" >"$1.todo" && ddrescue --quiet --domain-mapfile="$1.todo" "$2" f "$1.done"`, lost, copied)
	m.Check("f", data)
}
