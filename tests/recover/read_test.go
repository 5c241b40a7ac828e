package recover

import (
	"path/filepath"
	"testing"

	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const poisonedSize = 1<<20 + 777

// known are places of all kinds in a file of poisonedSize bytes: its first
// line, a line within a page, pages side by side, both sides of a
// boundary of 128 KiB where readahead begins anew, and its last line.
var known = []rng{
	{Off: 0, Len: 1},
	{Off: 5*page + 1000, Len: line},
	{Off: 20 * page, Len: 2 * page},
	{Off: 128<<10 - 1, Len: 2},
	{Off: poisonedSize - 1, Len: 1},
}

// latent are such places where the first touch comes from the bytes before: it
// loses just the line. A read that begins in a latent line does not get
// to know more than its sector.
var latent = []rng{
	{Off: 5*page + 1000, Len: 1},
	{Off: 20 * page, Len: 2 * page},
	{Off: 128<<10 - 1, Len: 1},
	{Off: poisonedSize - 1, Len: 1},
}

// Programs that read get every byte that can be had, all of them, and no error.
func TestProgramsReadAroundPoison(t *testing.T) {
	readers := map[string]string{
		"cat":    `cat "$1" >"$2"`,
		"cp":     `cp "$1" "$2"`,
		"dd 1M":  `dd if="$1" of="$2" bs=1M status=none`,
		"dd 777": `dd if="$1" of="$2" bs=777 status=none`,
		"direct": `dd if="$1" of="$2" bs=64k iflag=direct status=none`,
		"tar":    `tar -cf - "$1" | tar -xOf - >"$2"`,
		"python": `python3 -c 'import sys; open(sys.argv[2], "wb").write(open(sys.argv[1], "rb").read())' "$1" "$2"`,
	}
	harness.Need(t, harness.Program("tar", "python3"))
	t.Run("known", func(t *testing.T) {
		eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
			for name, script := range readers {
				data := m.File(name, 1, poisonedSize)
				m.Inject(name, known...)
				readWith(t, m, name, script, data, known, lost)
			}
		})
	})
	t.Run("latent", func(t *testing.T) {
		eachProfile(t, func(t *testing.T, m *harness.Mount, _ func(rng) rng) {
			for name, script := range readers {
				data := m.File(name, 1, poisonedSize)
				m.InjectLatent(name, latent...)
				readWith(t, m, name, script, data, latent, func(r rng) rng { return r.Widen(line) })
			}
		})
	})
}

// readWith reads a file with poison by a program, and looks at what that got.
func readWith(t *testing.T, m *harness.Mount, name, script string, data []byte, poison []rng, lost func(rng) rng) {
	t.Helper()
	gone := ranges.Of()
	for _, r := range poison {
		gone.Add(lost(r).Intersect(rng{Len: poisonedSize}))
	}
	out := filepath.Join(harness.Dir(t), "out")
	m.Sh(script, name, out)
	harness.Compare(t, name+", what the program got", readFile(t, out), data, gone.Slice()...)
	m.Check(name, data, gone.Slice()...)
	if got := readFile(t, m.Below(name)); len(got) != len(data) {
		t.Errorf("%s has %d bytes in the backing directory after reads, want %d", name, len(got), len(data))
	}
}

func TestCmpFindsNoDifferenceButTheLostBytes(t *testing.T) {
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		data := m.File("f", 2, poisonedSize)
		m.Inject("f", rng{Off: 300000, Len: 1})
		gone := lost(rng{Off: 300000, Len: 1})
		m.Sh(`cmp f "$1"`, outside(t, zeroed(data, gone)))
		m.Check("f", data, gone)
	})
}

// A copy within the mount has zeros where the source has lost bytes, and the
// ledger says so of the copy too.
func TestCopyWithinTheMountRecordsTheLossOfTheCopy(t *testing.T) {
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		data := m.File("f", 3, 64*page+100)
		m.Inject("f", rng{Off: 7*page + 64, Len: 1}, rng{Off: 30 * page, Len: page})
		gone := []rng{lost(rng{Off: 7*page + 64, Len: 1}), {Off: 30 * page, Len: page}}
		m.Sh(`cp f copy`)
		m.Check("copy", data, gone...)
		m.Check("f", data, gone...)
		for _, row := range m.Lost("copy") {
			if row.Cause != "copied" {
				t.Errorf("copy %v has the cause %q, want copied", row.Range, row.Cause)
			}
		}
	})
}
