package state

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

// A mount that root makes read-only by a remount, of which the kernel tells nobody, is
// shown so, and repairs nothing until it is writable again.
func TestReadOnlyByRemount(t *testing.T) {
	harness.Need(t, harness.Root)
	m := harness.Simulated(t, "dax", "--repair", "eager")
	names := []string{"a", "b"}
	for i, name := range names {
		m.File(name, uint64(i), 3*page)
	}
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", m.At, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|flags, ""); err != nil {
			t.Fatal(err)
		}
		if s := m.Status(); s.ReadOnly || s.ReadOnlyNow != (flags&unix.MS_RDONLY != 0) {
			t.Errorf("after a remount the status has read-only %v, now %v", s.ReadOnly, s.ReadOnlyNow)
		}
	}
	remount(unix.MS_RDONLY)
	for _, name := range names { // when b is noticed, a would have been repaired
		m.Inject(name, rng{Off: page, Len: 64})
		for !noticed(m, name) {
		}
	}
	if m.Poison("a").Empty() {
		t.Error("it was repaired, and the mount is read-only")
	}
	remount(0)
	for m.Poison("a").Count()+m.Poison("b").Count() > 0 {
	}
}

func noticed(m *harness.Mount, name string) bool {
	for _, ev := range m.Events() {
		if ev.Event == event.Detected && ev.Path == name {
			return true
		}
	}
	return false
}
