package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/media/pmem"
)

// ask looks at dir as Examine does, as far as the scratch files go.
func ask(t *testing.T, dir string) (*facts, int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	f := &facts{from: sources{sys: "/sys", proc: "/proc"}, path: dir}
	if err := f.askMedium(fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.medium.device.close)
	f.askScratch(fd)
	return f, fd
}

// TestScratchIsTriedHere needs nothing but a directory: whatever the filesystem
// below it, all is tried, and all has an answer or a reason.
func TestScratchIsTriedHere(t *testing.T) {
	f, _ := ask(t, t.TempDir())
	s := f.scratch
	if !s.fill.works() {
		t.Skipf("%s has no files without a name: %s%s", f.medium.mount.fstype, s.open.reason(), s.fill.reason())
	}
	for name, trial := range map[string]trial{
		"flagDAX": s.flagDAX, "mapSync": s.mapSync, "direct": s.direct, "punch": s.punch,
		"zeroRange": s.zeroRange, "clone": s.clone, "place": s.blocks.place,
	} {
		if !trial.done {
			t.Errorf("%s was not tried: %s", name, trial.reason())
		}
	}
	for name, trial := range map[string]trial{"owner": s.blocks.owner, "sector": s.blocks.sector} {
		if !trial.done && trial.why == "" {
			t.Errorf("%s was not tried, and nobody says why", name)
		}
	}
	for name, trial := range map[string]trial{"direct": s.direct, "punch": s.punch, "zeroRange": s.zeroRange} {
		if errors.Is(trial.err, errWrongBytes) {
			t.Errorf("%s: %v", name, trial.err)
		}
	}
	if left, err := os.ReadDir(f.path); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestScratchInMemory(t *testing.T) {
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Skip("no tmpfs at " + shm)
	}
	f, _ := ask(t, shm)
	s := f.scratch
	if !s.punch.works() || s.mapSync.works() || s.clone.works() || s.blocks.place.works() || s.blocks.sector.works() {
		t.Errorf("%+v", s)
	}
}

// TestScratchNowhere: where no file can be made, nothing is tried, and it says
// why.
func TestScratchNowhere(t *testing.T) {
	f, fd := ask(t, "/proc/self")
	s := f.scratch
	if s.open.works() || s.open.reason() == "" || s.punch.done || s.clone.done || s.blocks.sector.done {
		t.Errorf("%+v", s)
	}
	f.medium.mount.fstype = "fuse.mendfs"
	f.scratch = scratch{}
	if f.askScratch(fd); f.scratch.open.done {
		t.Errorf("it was tried in a mendfs mount: %+v", f.scratch)
	}
}

// TestNothingIsWrittenWhereItCouldDoHarm: bad blocks are listed, and the bus may
// not clear them.
func TestNothingIsWrittenWhereItCouldDoHarm(t *testing.T) {
	dir := t.TempDir()
	f, fd := ask(t, dir)
	if !f.scratch.fill.works() {
		t.Skip("no files without a name here")
	}
	good, nfit := &pmem.List{Complete: true}, []string{"clear_error"}
	for _, c := range []struct {
		name string
		d    device
		want bool // filled
	}{
		{"nothing listed", device{list: good}, true},
		{"something listed", device{list: listed(true)}, false},
		{"something listed, cleared", device{list: listed(true), bus: bus{"ACPI.NFIT", nfit}}, true},
		{"something listed, refused", device{list: listed(true), bus: bus{"ACPI.NFIT", nil}}, false},
		{"list cut", device{list: &pmem.List{}}, false},
		{"list secret", device{badblocks: unix.EACCES}, false},
		{"not pmem", device{notPmem: pmem.ErrNotPmem}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.d.path, c.d.rawRead = "/dev/pmem0", pmem.ErrNoRaw
			f.medium.device, f.scratch = c.d, scratch{}
			f.askScratch(fd)
			s := f.scratch
			if !s.open.works() || !s.mapSync.done || s.fill.works() != c.want || s.punch.done != c.want || s.blocks.place.done != c.want {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestWrongBytesAreNoticed reads a file that has other content than was written.
func TestWrongBytesAreNoticed(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := fill(int(file.Fd()), make([]byte, fileSize)); err != nil {
		t.Fatal(err)
	}
	err = tryDirect(int(file.Fd()), pattern())
	if errors.Is(err, unix.EINVAL) {
		t.Skip("no O_DIRECT of 512 bytes here")
	}
	if !errors.Is(err, errWrongBytes) {
		t.Errorf("got %v", err)
	}
}

func TestAskStore(t *testing.T) {
	home := filepath.Join(t.TempDir(), "not", "yet")
	f := &facts{state: State{Home: home}}
	f.askStore()
	if s := f.store; s.err != nil || s.dir != filepath.Dir(filepath.Dir(home)) || s.free <= 0 || s.write != nil || s.together {
		t.Errorf("%+v", s)
	}
	f = &facts{state: State{Home: "/proc/self"}}
	f.askStore()
	if s := f.store; s.err != nil || s.free != 0 {
		t.Errorf("%+v", s)
	}
	f = &facts{}
	f.askStore()
	if f.store.err == nil {
		t.Errorf("%+v", f.store)
	}
}
