package fs

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// kernelModes is what Linux 6.18 makes of the opens of one inode
// (fs/fuse/iomode.c, and vma_set_file for mappings).
type kernelModes struct {
	cached, passing int
	mappings        int // of the backing file
}

// open reports whether the open gets on with the others: otherwise it is EIO.
func (k *kernelModes) open(s service) bool {
	if s == cached {
		k.cached++
		return k.passing == 0
	}
	k.passing++
	return k.cached == 0
}

func (k *kernelModes) close(s service) {
	if s == cached {
		k.cached--
	} else {
		k.passing--
	}
}

// modeRun is a random history of one inode: what the kernel has, and what we
// know of it.
type modeRun struct {
	t       *testing.T
	rnd     *rand.Rand
	protect Protect
	mode    ioMode
	kernel  kernelModes
	open    []service // in the kernel
	ended   []service // RELEASE is on its way
	damaged bool
	history []string
}

func (r *modeRun) fail(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("%s, with protection %v after %s", fmt.Sprintf(format, args...), r.protect, strings.Join(r.history, ", "))
}

func (r *modeRun) did(format string, args ...any) {
	r.history = append(r.history, fmt.Sprintf(format, args...))
}

func (r *modeRun) unused() bool { return len(r.open) == 0 && r.kernel.mappings == 0 }

func (r *modeRun) openOne() {
	r.t.Helper()
	s := r.mode.next(r.protect, func() bool { return r.damaged }, r.unused)
	r.did("open %d", s)
	switch {
	case s == cached && r.kernel.mappings > 0:
		r.fail("cached beside a mapping of the backing file")
	case s == through && (r.damaged || r.protect != ProtectKnown):
		r.fail("all of the file handed to the kernel")
	case s != cached && r.protect == ProtectFull:
		r.fail("not protected")
	case s == direct && r.protect == ProtectKnown && r.unused() && len(r.ended) == 0:
		r.fail("not in full service although it could be")
	case s != direct && r.protect == ProtectRW, s == cached && !r.damaged && r.protect == ProtectKnown && r.mode.opens[cached] == 0:
		r.fail("not as fast as it could be")
	}
	r.mode.opened(s)
	if !r.kernel.open(s) {
		r.fail("EIO")
	}
	r.open = append(r.open, s)
}

func (r *modeRun) step() {
	r.t.Helper()
	switch r.rnd.IntN(8) {
	case 0, 1:
		r.openOne()
	case 2, 3:
		if len(r.open) > 0 {
			i := r.rnd.IntN(len(r.open))
			s := r.open[i]
			r.open = append(r.open[:i], r.open[i+1:]...)
			r.kernel.close(s)
			r.ended = append(r.ended, s)
			r.did("close %d", s)
		}
	case 4:
		if len(r.ended) > 0 {
			r.mode.closed(r.ended[0])
			r.did("RELEASE %d", r.ended[0])
			r.ended = r.ended[1:]
		}
	case 5:
		if r.kernel.passing > 0 {
			r.kernel.mappings++
			r.did("map")
		}
	case 6:
		if r.kernel.mappings > 0 {
			r.kernel.mappings--
			r.did("unmap")
		}
	case 7:
		r.damaged = !r.damaged
		r.did("damaged: %v", r.damaged)
	}
	if len(r.open)+len(r.ended)+r.kernel.mappings == 0 && r.rnd.IntN(20) == 0 {
		r.mode = ioMode{}
		r.did("FORGET")
	}
	if r.kernel.passing+r.kernel.mappings > 0 && !r.mode.isShared() {
		r.fail("the kernel may write, and the engine was not told")
	}
}

// TestModesNeverClash: no history of opens, closes, mappings and poison has an
// open that the kernel refuses, or one that is served in a way it must not be.
func TestModesNeverClash(t *testing.T) {
	for seed := range uint64(300) {
		r := &modeRun{t: t, rnd: rand.New(rand.NewPCG(seed, 3)), protect: Protect(seed % 3)}
		for range 300 {
			r.step()
		}
	}
}

// TestModeOfDamagedFile is the story that the modes are for.
func TestModeOfDamagedFile(t *testing.T) {
	var m ioMode
	damaged, unused := false, false
	want := func(what string, want service) {
		t.Helper()
		got := m.next(ProtectKnown, func() bool { return damaged }, func() bool { return unused })
		if got != want {
			t.Errorf("%s: service %d, want %d", what, got, want)
		}
		m.opened(got)
	}
	want("clean", through)
	damaged = true
	want("poison becomes known while it is open", direct)
	m.closed(through)
	want("the first open is closed", direct)
	m.closed(direct)
	m.closed(direct)
	want("all are closed, a mapping may be left", direct)
	m.closed(direct)
	unused = true
	want("no mapping is left", cached)
	damaged = false
	want("repaired, still open", cached)
	m.closed(cached)
	m.closed(cached)
	want("repaired and closed", through)
}

func TestProtectByName(t *testing.T) {
	for _, p := range []Protect{ProtectFull, ProtectRW, ProtectKnown} {
		if got, err := ProtectByName(p.String()); err != nil || got != p {
			t.Errorf("%v: %v, %v", p, got, err)
		}
	}
	for _, name := range []string{"", "Full", "all"} {
		if _, err := ProtectByName(name); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) || !strings.Contains(err.Error(), "full, rw, known") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
