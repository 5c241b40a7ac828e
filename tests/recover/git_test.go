package recover

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

// makeRepository is a git repository with some history, outside of any mount.
func makeRepository(t *testing.T, m *harness.Mount) string {
	t.Helper()
	dir := harness.Dir(t)
	m.Sh(`cd "$1"; git init -q .; git config user.name t; git config user.email t@example.org; git config gc.auto 0
for i in 1 2 3 4 5; do
  mkdir -p d$i
  for j in 1 2 3 4 5 6; do seq $((i * j * 100)) $((i * j * 100 + 900)) >d$i/f$j; done
  git add . && git commit -qm "$i"
done`, dir)
	return dir
}

func TestGit(t *testing.T) {
	t.Setenv("HOME", harness.Dir(t)) // nobody's own settings
	harness.Need(t, harness.Program("git"))
	m := harness.Simulated(t, "dax")
	source := makeRepository(t, m)

	t.Run("clone and fsck, poison elsewhere", func(t *testing.T) {
		data := m.File("other", 1, 64*page)
		m.Inject("other", rng{Off: 3 * page, Len: sector})
		m.Sh(`git clone -q --no-local "$1" clone; cd clone; git fsck --strict --full; test -z "$(git status --porcelain)"`, source)
		if lost := m.Lost("clone"); len(lost) > 0 {
			t.Errorf("in the clone is lost: %v", lost)
		}
		m.Check("other", data, rng{Off: 3 * page, Len: sector})
	})

	t.Run("poison under objects", func(t *testing.T) {
		m.Sh(`git clone -q --no-local "$1" hurt`, source)
		packs, err := filepath.Glob(m.Path("hurt/.git/objects/pack/*.pack"))
		if err != nil || len(packs) != 1 {
			t.Fatalf("packs: %q, %v", packs, err)
		}
		pack, err := filepath.Rel(m.At, packs[0])
		if err != nil {
			t.Fatal(err)
		}
		data := readFile(t, packs[0])
		bad := rng{Off: int64(len(data)) / 2 &^ (sector - 1), Len: sector}
		m.Inject(pack, bad)
		if r := m.TrySh(`cd hurt && git fsck --full`); r.Exit == 0 {
			t.Error("git fsck finds nothing wrong with zeros in a pack")
		}
		m.Check(pack, data, bad)

		// What git needs for the cure is the lost bytes themselves.
		if err := os.Chmod(packs[0], 0o644); err != nil {
			t.Fatal(err)
		}
		if data = m.Overwrite(pack, data, data[bad.Off:bad.End()], bad.Off); !t.Failed() {
			m.Check(pack, data)
			m.Cured(pack, bad)
		}
		if out := m.Sh(`cd hurt && git fsck --strict --full 2>&1`); strings.Contains(out, "error") {
			t.Errorf("git fsck after the cure: %s", out)
		}
	})
}
