package protect

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// rw: read and write are served by mendfs, of whatever file; mappings by the
// kernel.
func TestRW(t *testing.T) {
	m := simulated(t, "rw")
	data := m.File("f", 1, 8*page)
	f := open(t, m, "f", unix.O_RDWR)
	m.InjectLatent("f", rng{Off: 2*page + 640, Len: 64})
	m.Inject("f", pageAt(5))
	line := rng{Off: 2*page + 640, Len: 64}
	passing(t, m, 1)
	f.reads("an open from before", data, line, pageAt(5))
	f.maps("its mapping", data)
	g := open(t, m, "f", unix.O_RDONLY)
	g.reads("another open", data, line, pageAt(5))
	g.close()
	m.Check("f", data, line, pageAt(5))
	if err := f.write([]byte("part"), 5*page); !errors.Is(err, unix.EIO) {
		t.Errorf("a write of part of a damaged page: %v, want EIO", err)
	}
	whole := harness.Pattern(3, page)
	if err := f.write(whole, 5*page); err != nil {
		t.Errorf("a write of a whole damaged page: %v", err)
	}
	data = harness.Lay(data, whole, 5*page)
	f.reads("after the overwrite", data, line)
	f.close()
	m.Check("f", data, line)
	if got := unprotected(m); got != "" {
		t.Errorf("unprotected: %q; in rw nobody is worse off than others", got)
	}
}
