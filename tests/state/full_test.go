package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/tests/harness"
)

// refusesRepairs checks that the mount's file f, with poison in pages 0 and 3, is read
// and not repaired.
func refusesRepairs(t *testing.T, m *harness.Mount, data []byte) {
	t.Helper()
	lost := []rng{{Off: 0, Len: sector}, {Off: 3 * page, Len: sector}}
	m.Check("f", data, lost...)
	if err := m.WriteAt("f", []byte("x"), 3*page+1000); !errors.Is(err, unix.EIO) {
		t.Errorf("a repair without room for its image: %v, want EIO", err)
	}
	if left := m.Poison("f"); !left.Contains(rng{Off: 0, Len: 64}) || !left.Contains(rng{Off: 3 * page, Len: 64}) {
		t.Errorf("poison was cleared without a record: %v is left", left)
	}
	m.Drop("f")
	m.Check("f", data, lost...)
	clean := m.Overwrite("f", data, []byte("elsewhere"), 5*page)
	copy(data, clean)
}

// repairs checks that it is as if nothing had been.
func repairs(t *testing.T, m *harness.Mount, data []byte) {
	t.Helper()
	eventually(t, "a repair with room", func() bool { return m.WriteAt("f", []byte("x"), 3*page+1000) == nil })
	data[3*page+1000] = 'x'
	data = m.Overwrite("f", data, harness.Pattern(2, page), 0)
	eventually(t, "the end of the trouble", func() bool { return len(m.Status().Trouble) == 0 })
	lost := rng{Off: 3 * page, Len: sector}
	m.Check("f", data, lost)
	m.Restart()
	m.Check("f", data, lost)
}

func damaged(t *testing.T, m *harness.Mount) []byte {
	t.Helper()
	data := m.File("f", 1, 8*page)
	m.Inject("f", rng{Off: 0, Len: 64}, rng{Off: 3 * page, Len: 64})
	return data
}

// onVolumes runs a test with a small state disk of each kind.
func onVolumes(t *testing.T, test func(t *testing.T, v *volume)) {
	t.Helper()
	t.Run("tmpfs", func(t *testing.T) { test(t, newVolume(t, "size=4m")) })
	t.Run("ext4", func(t *testing.T) {
		d := harness.NewDisk(t, "ext4", 8, "-m", "0")
		test(t, &volume{t: t, at: d.At})
	})
}

func TestFullInTheMiddle(t *testing.T) { onVolumes(t, fullInTheMiddle) }

func fullInTheMiddle(t *testing.T, v *volume) {
	log := filepath.Join(harness.Dir(t), "events")
	m := harness.New(t, harness.Config{State: v.path("s"), Flags: []string{"--simulate", "dax", "--event-log", log}})
	data := damaged(t, m)
	v.fill()
	refusesRepairs(t, m, data)
	said := false
	for _, e := range harness.ParseEvents(t, read(t, log)) {
		said = said || e.Event == event.RepairFailed && e.Path == "f" && e.Next != "" && strings.Contains(e.Error, "full")
	}
	if !said {
		t.Errorf("no event says that the repair had no room: %s", read(t, log))
	}
	if trouble := m.Status().Trouble; len(trouble) == 0 {
		t.Error("status knows of no trouble")
	}
	v.makeRoom()
	repairs(t, m, data)
}

// A disk that is full when the directory is to be made: nothing is left of it.
func TestFullAtTheFirstMount(t *testing.T) {
	v := newVolume(t, "size=1m")
	v.fill()
	refused(t, exitOperational, v.path("s"), "no space left", "make room")
	if _, err := os.Stat(v.path("s")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}

// A disk that is full when it is mounted again: all is served, and what has to be
// written into meta.json is refused. (A full ext4 may find a block for it all the same.)
func TestFullAtALaterMount(t *testing.T) {
	v := newVolume(t, "size=4m")
	m := harness.New(t, harness.Config{State: v.path("s"), Flags: []string{"--simulate", "dax"}})
	data := damaged(t, m)
	m.Stop()
	v.fill()
	before := read(t, v.path("s/meta.json"))
	if err := m.TryStart("--simulate", "dax", "--semantics", "strict"); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("with another semantics: %v", err)
	}
	if after := read(t, v.path("s/meta.json")); after != before {
		t.Errorf("meta.json was\n%s and is\n%s", before, after)
	}
	m.Start()
	refusesRepairs(t, m, data)
	v.makeRoom()
	repairs(t, m, data)
}

// After a crash, with nothing to finish, a full disk keeps repairs from being begun and nothing else.
func TestFullAfterACrash(t *testing.T) { onVolumes(t, fullAfterACrash) }

func fullAfterACrash(t *testing.T, v *volume) {
	m := harness.New(t, harness.Config{State: v.path("s"), Flags: []string{"--simulate", "dax"}})
	data := damaged(t, m)
	m.Kill()
	v.fill()
	m.Start()
	refusesRepairs(t, m, data)
	v.makeRoom()
	m.Check("f", data, rng{Off: 0, Len: sector}, rng{Off: 3 * page, Len: sector})
	repairs(t, m, data)
}
