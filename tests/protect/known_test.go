package protect

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// A file whose poison becomes known while it is open: the old open stays as it is,
// new ones are protected for read and write, and after the last close all of
// it is.
func TestKnownFromCleanToDamaged(t *testing.T) {
	m := simulated(t, "known")
	data := m.File("f", 1, 8*page)
	passing(t, m, 0)
	old := open(t, m, "f", unix.O_RDONLY)
	passing(t, m, 1)
	m.Inject("f", sectorAt(2*page))
	lost := sectorAt(2 * page)
	old.reads("the open from before", data)
	fresh := open(t, m, "f", unix.O_RDWR)
	fresh.reads("a new open beside it", data, lost)
	fresh.maps("a new open's mapping", data)
	if got := unprotected(m); got != "f 1" {
		t.Errorf("unprotected: %q, want %q", got, "f 1")
	}
	text := harness.Mendfs(t, "status", m.At).Stdout
	if want := "f: 1 open from before its poison was known; close and open it again"; !strings.Contains(text, want) {
		t.Errorf("status does not say %q: %s", want, text)
	}
	old.close()
	eventually(t, "nothing unprotected", func() bool { return unprotected(m) == "" })
	third := open(t, m, "f", unix.O_RDONLY)
	third.reads("an open after the old one was closed", data, lost)
	third.maps("its mapping", data)
	fresh.close()
	third.close()
	passing(t, m, 0)
	full := open(t, m, "f", unix.O_RDWR)
	full.reads("full service", data, lost)
	full.maps("a mapping in full service", data, lost)
	passing(t, m, 0)

	// Repaired, it is the kernel's again, from the first open on that finds none.
	data = harness.Lay(data, harness.Pattern(2, page), 2*page)
	if err := full.write(data[2*page:3*page], 2*page); err != nil {
		t.Fatal(err)
	}
	beside := open(t, m, "f", unix.O_RDONLY)
	passing(t, m, 0)
	beside.reads("after the repair", data)
	beside.close()
	full.close()
	eventually(t, "an open in passthrough", func() bool {
		f := open(t, m, "f", unix.O_RDONLY)
		defer f.close()
		f.reads("after all that", data)
		return m.Status().Protection.Passthrough == 1
	})
	m.Check("f", data)
}

// A mapping outlives its file descriptor, and nobody tells: as long as it may
// be there the file is not taken into the page cache of the mount, in which
// the mapping's stores would not show.
func TestKnownMappingOutlivesClose(t *testing.T) {
	m := simulated(t, "known")
	data := m.File("f", 1, 8*page)
	f := open(t, m, "f", unix.O_RDWR)
	mapping := f.mapped()
	f.close()
	passing(t, m, 0)
	m.Inject("f", sectorAt(2*page))
	lost := sectorAt(2 * page)
	if got := unprotected(m); got != "f 0" {
		t.Errorf("unprotected: %q, want %q", got, "f 0")
	}
	g := open(t, m, "f", unix.O_RDWR)
	passing(t, m, 1)
	g.reads("an open beside the mapping", data, lost)
	copy(mapping, "mapped")
	data = harness.Lay(data, []byte("mapped"), 0)
	g.reads("after a store", data, lost)

	// What the mapping may be writing is not rewritten: only whole pages are.
	if err := g.write([]byte("part"), 2*page+2048); !errors.Is(err, unix.EIO) {
		t.Errorf("a write of part of a damaged page: %v, want EIO", err)
	}
	g.reads("after the refusal", data, lost)
	if err := g.write([]byte("part"), 3*page); err != nil {
		t.Errorf("a write of part of a good page: %v", err)
	}
	data = harness.Lay(data, []byte("part"), 3*page)
	if got := bytes.Clone(mapping); !bytes.Equal(got, data) {
		t.Error("the mapping does not show what was written")
	}
	g.close()
	passing(t, m, 0)
	unmap(t, mapping)
	eventually(t, "full service", func() bool {
		f := open(t, m, "f", unix.O_RDONLY)
		defer f.close()
		f.reads("without the mapping", data, lost)
		return m.Status().Protection.Passthrough == 0
	})
	if got := unprotected(m); got != "" {
		t.Errorf("unprotected: %q", got)
	}
	h := open(t, m, "f", unix.O_RDWR)
	h.maps("a mapping in full service", data, lost)
	if err := h.write([]byte("part"), 2*page+2048); err != nil {
		t.Errorf("a write of part of a damaged page in full service: %v", err)
	}
	data = harness.Lay(data, []byte("part"), 2*page+2048)
	h.close()
	m.Check("f", data, lost)
}

// Poison that is known when the file is first opened is served in full.
func TestKnownDamagedBefore(t *testing.T) {
	m := simulated(t, "known")
	data := m.File("f", 1, 8*page)
	sound := m.File("sound", 2, page)
	m.Inject("f", pageAt(3), sectorAt(5*page))
	m.Check("f", data, pageAt(3), sectorAt(5*page))
	m.Restart()
	f := open(t, m, "f", unix.O_RDWR)
	s := open(t, m, "sound", unix.O_RDONLY)
	passing(t, m, 1)
	f.maps("known before the mount", data, pageAt(3), sectorAt(5*page))
	s.reads("a file without poison", sound)
	s.close()
	f.close()
}
