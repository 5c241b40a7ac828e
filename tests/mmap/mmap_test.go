// Package mmap shows that programs which map files never get SIGBUS because of
// poison (promise P2), and that their stores cure like writes do.
package mmap

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector
	line   = harness.Line

	goMapMark = "MENDFS_TEST_MAP"
)

type rng = harness.Range

func TestMain(m *testing.M) {
	if os.Getenv(goMapMark) != "" {
		if err := goMap(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	harness.Main(m)
}

// program makes a command that maps.
type program func(args ...string) *exec.Cmd

// programs are the same program in three languages.
func programs(t *testing.T) map[string]program {
	t.Helper()
	harness.Need(t, harness.Program("gcc", "python3"))
	c := filepath.Join(harness.Dir(t), "map")
	if r := harness.Run(t, "gcc", "-O1", "-Wall", "-Werror", "-o", c, "testdata/map.c"); r.Exit != 0 {
		t.Fatalf("gcc: %s", r.Stderr)
	}
	return map[string]program{
		"C": func(args ...string) *exec.Cmd { return exec.Command(c, args...) },
		"Python": func(args ...string) *exec.Cmd {
			return exec.Command("python3", append([]string{"testdata/map.py"}, args...)...)
		},
		"Go": func(args ...string) *exec.Cmd {
			cmd := exec.Command(os.Args[0], args...)
			cmd.Env = append(os.Environ(), goMapMark+"=1")
			return cmd
		},
	}
}

// running is a program that maps, started.
type running struct {
	t              *testing.T
	cmd            *exec.Cmd
	in             io.WriteCloser
	stdout, stderr bytes.Buffer
}

func start(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{t: t, cmd: cmd}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.in, cmd.Stdout, cmd.Stderr = in, &r.stdout, &r.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// store lets it store.
func (r *running) store() {
	r.t.Helper()
	if _, err := io.WriteString(r.in, "go\n"); err != nil {
		r.t.Error(err)
	}
}

// saw is what its mapping held at the end.
func (r *running) saw() []byte {
	r.t.Helper()
	stuck := time.AfterFunc(time.Minute, func() { _ = r.cmd.Process.Kill() }) // Wait tells
	defer stuck.Stop()
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("%v: %v: %s", r.cmd.Args, err, r.stderr.String())
	}
	return r.stdout.Bytes()
}

// places are where the poison lies in a file of fileSize bytes.
var places = []rng{{Off: 200, Len: 1}, {Off: 10*page + 640, Len: line}, {Off: 40 * page, Len: 2 * page}, {Off: fileSize - 1, Len: 1}}

const fileSize = 96*page + 1234

// poison puts a file with poison into the mount, and returns its content and
// what of it is lost.
func poison(t *testing.T, m *harness.Mount, name string, unit int64, latent bool) ([]byte, *ranges.Set) {
	t.Helper()
	data := m.File(name, 1, fileSize)
	gone := ranges.Of()
	if latent {
		m.InjectLatent(name, places...)
		unit = line
	} else {
		m.Inject(name, places...)
	}
	for _, r := range places {
		gone.Add(r.Widen(unit).Intersect(rng{Len: fileSize}))
	}
	return data, gone
}

var profiles = map[string]int64{"dax": sector, "dax-5.18": sector, "line": line}

func TestMappedReads(t *testing.T) {
	for profile, unit := range profiles {
		t.Run(profile, func(t *testing.T) {
			m := harness.Simulated(t, profile)
			for language, mapped := range programs(t) {
				for _, kind := range []string{"shared", "private"} {
					for _, latent := range []bool{false, true} {
						name := fmt.Sprint(language, kind, latent)
						data, gone := poison(t, m, name, unit, latent)
						got := start(t, mapped(kind, m.Path(name))).saw()
						harness.Compare(t, name+", mapped", got, data, gone.Slice()...)
						m.Check(name, data, gone.Slice()...)
					}
				}
			}
		})
	}
}

// A store into a bad page makes the kernel write the whole page back: the bytes
// stored are there, the salvaged neighbours too, the poison is gone, and the
// zeros that came along are still lost bytes.
func TestMappedWrites(t *testing.T) {
	const off, text = 10*page + 700, "stored by a program"
	for profile, unit := range profiles {
		t.Run(profile, func(t *testing.T) {
			m := harness.Simulated(t, profile)
			for language, mapped := range programs(t) {
				name := language + " shared"
				data, gone := poison(t, m, name, unit, false)
				p := start(t, mapped("shared", m.Path(name), fmt.Sprint(off), text))
				p.store()
				want := harness.Lay(data, []byte(text), off)
				gone.Remove(rng{Off: off, Len: int64(len(text))})
				harness.Compare(t, name+", mapped", p.saw(), want, gone.Slice()...)
				m.Check(name, want, gone.Slice()...)
				m.Cured(name, ranges.Page(off))

				name = language + " private"
				data, gone = poison(t, m, name, unit, false)
				p = start(t, mapped("private", m.Path(name), fmt.Sprint(off), text))
				p.store()
				seen := gone.Slice()
				unchanged := ranges.Of(seen...)
				unchanged.Remove(rng{Off: off, Len: int64(len(text))})
				harness.Compare(t, name+", mapped", p.saw(), harness.Lay(data, []byte(text), off), unchanged.Slice()...)
				m.Check(name, data, seen...)
			}
			m.Restart() // and so it is on the media, not only in the page cache
			for language := range programs(t) {
				data := harness.Lay(harness.Pattern(1, fileSize), []byte(text), off)
				got, err := os.ReadFile(m.Path(language + " shared"))
				if err != nil {
					t.Fatal(err)
				}
				harness.Compare(t, "after a remount", got[10*page:11*page], data[10*page:11*page],
					lostAround(unit, off, len(text))...)
			}
		})
	}
}

// lostAround is what of the poisoned line in page 10 stays lost when n bytes at off
// are stored, relative to the page.
func lostAround(unit, off int64, n int) []rng {
	gone := ranges.Of(rng{Off: 640, Len: line}.Widen(unit))
	gone.Remove(rng{Off: off - 10*page, Len: int64(n)})
	return gone.Slice()
}

// Two processes write neighbouring bytes of a bad page at the same moment, one
// of them through a mapping: both writes are there, and the neighbours kept.
func TestNeighbouringWritesToABadPage(t *testing.T) {
	all := programs(t)
	for profile, unit := range profiles {
		t.Run(profile, func(t *testing.T) {
			m := harness.Simulated(t, profile)
			for seed := range uint64(12) {
				neighbours(t, m, all[[]string{"C", "Python", "Go"}[seed%3]], unit, seed)
			}
		})
	}
}

func neighbours(t *testing.T, m *harness.Mount, mapped program, unit int64, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 3))
	name := fmt.Sprint("neighbours", seed)
	data := m.File(name, seed, 4*page)
	bad := rng{Off: page + 2048, Len: line}
	m.Inject(name, bad)
	gone := ranges.Of(bad.Widen(unit))

	// The two writes meet at border, somewhere in the page, half of the times
	// in or near the poison.
	border := page + 64 + random.Int64N(page-128)
	if seed%2 == 0 {
		border = bad.Off - 32 + random.Int64N(128)
	}
	left, right := bytes.Repeat([]byte{'L'}, 1+random.IntN(60)), bytes.Repeat([]byte{'R'}, 1+random.IntN(60))
	first, second := border-int64(len(left)), border
	p := start(t, mapped("shared", m.Path(name), fmt.Sprint(first), string(left)))
	writer := exec.Command("bash", "-c", `read -r && printf %s "$1" | dd of="$2" bs=4k oflag=seek_bytes seek="$3" conv=notrunc status=none`,
		"sh", string(right), m.Path(name), fmt.Sprint(second))
	w := start(t, writer)
	p.store()
	w.store()
	w.saw()
	p.saw()

	want := harness.Lay(harness.Lay(data, left, first), right, second)
	gone.Remove(rng{Off: first, Len: int64(len(left))})
	gone.Remove(rng{Off: second, Len: int64(len(right))})
	m.Check(name, want, gone.Slice()...)
	m.Cured(name, ranges.Page(page))
	m.Drop(name)
	m.Check(name, want, gone.Slice()...)
	if t.Failed() {
		t.Fatalf("seed %d: mapped %v, written %v", seed, rng{Off: first, Len: int64(len(left))}, rng{Off: second, Len: int64(len(right))})
	}
}

// With strict the application sees poison as it is, a mapped page as SIGBUS:
// the poison of these tests is real to the kernel.
func TestStrictIsSIGBUS(t *testing.T) {
	m := harness.Simulated(t, "dax", "--semantics", "strict")
	poison(t, m, "f", sector, false)
	p := start(t, programs(t)["C"]("shared", m.Path("f")))
	err := p.cmd.Wait()
	if err == nil || p.cmd.ProcessState.String() != "signal: bus error" && p.cmd.ProcessState.String() != "signal: bus error (core dumped)" {
		t.Errorf("the program ended with %v: %s, want SIGBUS", p.cmd.ProcessState, p.stderr.String())
	}
	if rows := m.Lost("f"); len(rows) > 0 {
		t.Errorf("nothing is given up in strict, and the ledger has %v", rows)
	}
}
