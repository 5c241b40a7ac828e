// Package protect shows what --protect=rw and --protect=known leave to the
// kernel, and what is protected all the same; and that no open ever fails
// because of the way in which another one is served.
//
// Simulated poison is not seen by the kernel: what it serves by itself reads as
// if there were none. That is how the tests tell who served.
package protect

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector
)

type rng = harness.Range

func TestMain(m *testing.M) { harness.Main(m) }

func pageAt(n int64) rng { return rng{Off: n * page, Len: page} }

func sectorAt(off int64) rng { return rng{Off: off, Len: sector} }

// file is an open file of a mount.
type file struct {
	t    *testing.T
	fd   int
	size int
}

func open(t *testing.T, m *harness.Mount, rel string, flags int) *file {
	t.Helper()
	fd, err := unix.Open(m.Path(rel), flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatalf("open(%s, %#x): %v", rel, flags, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return &file{t, fd, int(st.Size)}
}

func (f *file) close() {
	f.t.Helper()
	if err := unix.Close(f.fd); err != nil {
		f.t.Error(err)
	}
}

// reads reports what read(2) has to show, with zeros in lost.
func (f *file) reads(what string, want []byte, lost ...rng) {
	f.t.Helper()
	got := make([]byte, f.size)
	if n, err := unix.Pread(f.fd, got, 0); n != len(got) || err != nil {
		f.t.Errorf("%s: read %d bytes, %v", what, n, err)
	}
	harness.Compare(f.t, what, got, want, lost...)
}

func (f *file) write(data []byte, off int64) error {
	n, err := unix.Pwrite(f.fd, data, off)
	if err == nil && n != len(data) {
		return fmt.Errorf("%d of %d bytes written", n, len(data))
	}
	return err
}

// mapped maps the whole file, to read and, if it is open for that, to write.
func (f *file) mapped() []byte {
	f.t.Helper()
	prot := unix.PROT_READ
	if flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0); err != nil {
		f.t.Fatal(err)
	} else if flags&unix.O_ACCMODE == unix.O_RDWR {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(f.fd, 0, f.size, prot, unix.MAP_SHARED)
	if err != nil {
		f.t.Fatalf("mmap: %v", err)
	}
	return b
}

func unmap(t *testing.T, b []byte) {
	t.Helper()
	if err := unix.Munmap(b); err != nil {
		t.Error(err)
	}
}

// maps reports what a mapping has to show.
func (f *file) maps(what string, want []byte, lost ...rng) {
	f.t.Helper()
	b := f.mapped()
	defer unmap(f.t, b)
	harness.Compare(f.t, what, bytes.Clone(b), want, lost...)
}

// eventually waits for the kernel, which ends opens a moment after close(2).
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after a minute: %s", what)
		}
	}
}

// passing waits until status counts so many files in passthrough.
func passing(t *testing.T, m *harness.Mount, n int) {
	t.Helper()
	var got int
	eventually(t, fmt.Sprintf("%d files in passthrough", n), func() bool {
		got = m.Status().Protection.Passthrough
		return got == n
	})
}

// unprotected is the list in status, as text.
func unprotected(m *harness.Mount) string {
	var lines []string
	for _, u := range m.Status().Protection.Unprotected {
		lines = append(lines, fmt.Sprintf("%s %d", u.Name(), u.Opens))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

func simulated(t *testing.T, protect string) *harness.Mount {
	t.Helper()
	harness.Need(t, harness.Root)
	return harness.Simulated(t, "dax", "--protect", protect)
}

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

// history is a random sequence of what programs do to a few files whose poison
// becomes known in between.
type history struct {
	t    *testing.T
	m    *harness.Mount
	rnd  *rand.Rand
	open []*file
	maps [][]byte
	log  []string
}

var openFlags = []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_APPEND, unix.O_RDONLY | unix.O_DIRECT}

func (h *history) step() {
	h.t.Helper()
	name := fmt.Sprintf("f%d", h.rnd.IntN(3))
	switch h.rnd.IntN(10) {
	case 0, 1, 2:
		flags := openFlags[h.rnd.IntN(len(openFlags))]
		h.log = append(h.log, fmt.Sprintf("open(%s, %#x)", name, flags))
		fd, err := unix.Open(h.m.Path(name), flags, 0o600)
		if err != nil {
			h.t.Fatalf("%v after %s", err, strings.Join(h.log, ", "))
		}
		h.open = append(h.open, &file{h.t, fd, 8 * page})
	case 3, 4:
		if i := len(h.open); i > 0 {
			i = h.rnd.IntN(i)
			h.open[i].close()
			h.open = slices.Delete(h.open, i, i+1)
			h.log = append(h.log, "close")
		}
	case 5:
		if i := len(h.open); i > 0 {
			b, err := unix.Mmap(h.open[h.rnd.IntN(i)].fd, 0, page, unix.PROT_READ, unix.MAP_SHARED)
			if err == nil { // EACCES: not open for reading
				h.maps = append(h.maps, b)
			} else if !errors.Is(err, unix.EACCES) {
				h.t.Fatalf("mmap: %v after %s", err, strings.Join(h.log, ", "))
			}
			h.log = append(h.log, "mmap")
		}
	case 6:
		if i := len(h.maps); i > 0 {
			i = h.rnd.IntN(i)
			unmap(h.t, h.maps[i])
			h.maps = slices.Delete(h.maps, i, i+1)
			h.log = append(h.log, "munmap")
		}
	case 7:
		h.m.Inject(name, pageAt(h.rnd.Int64N(8)))
		h.log = append(h.log, "poison in "+name)
	case 8: // whole pages: repairs, whoever has it open
		f, err := os.OpenFile(h.m.Path(name), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(harness.Pattern(7, 8*page), 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			h.t.Fatalf("overwriting %s: %v after %s", name, err, strings.Join(h.log, ", "))
		}
		h.log = append(h.log, "overwrite "+name)
	case 9:
		if err := os.Rename(h.m.Path(name), h.m.Path("was-"+name)); err != nil {
			h.t.Fatal(err)
		}
		harness.WriteFile(h.t, h.m.Path(name), harness.Pattern(7, 8*page))
		h.log = append(h.log, "a new "+name)
	}
}

// No open ever fails because of the modes of others, whatever came before.
func TestNoOpenFails(t *testing.T) {
	for _, protect := range []string{"rw", "known"} {
		t.Run(protect, func(t *testing.T) {
			m := simulated(t, protect)
			for i := range 3 {
				m.File(fmt.Sprintf("f%d", i), 7, 8*page)
			}
			h := &history{t: t, m: m, rnd: rand.New(rand.NewPCG(5, 6))}
			for range 250 {
				h.step()
			}
			for _, f := range h.open {
				f.close()
			}
			for _, b := range h.maps {
				unmap(t, b)
			}
		})
	}
}

// A real medium: btrfs, whose checksums turn flipped bytes into EIO. What the
// kernel serves fails as it does without mendfs; once the poison is known, new
// opens are served.
func TestBtrfs(t *testing.T) {
	d := harness.NewDisk(t, "btrfs", 128, "-m", "single", "-d", "single")
	data := harness.Pattern(1, 64*page)
	harness.WriteFile(t, filepath.Join(d.At, "f"), data)
	harness.WriteFile(t, filepath.Join(d.At, "sound"), harness.Pattern(2, 8*page))
	d.Flip(data[20*page:21*page], data[40*page:41*page])

	t.Run("known", func(t *testing.T) {
		m := harness.New(t, harness.Config{Backing: d.At, Flags: []string{"--protect", "known"}})
		old := open(t, m, "f", unix.O_RDONLY)
		if _, err := unix.Pread(old.fd, make([]byte, page), 20*page); !errors.Is(err, unix.EIO) {
			t.Errorf("the first touch by read: %v, want EIO", err)
		}
		if !faults(t, old, 40*page) {
			t.Error("the first touch of a mapping is no SIGBUS")
		}
		passing(t, m, 1)
		// What copy_file_range(2) reads, mendfs reads: so it gets to know.
		to := open(t, m, "copy", unix.O_CREAT|unix.O_RDWR)
		for off := int64(0); off < int64(len(data)); {
			n, err := unix.CopyFileRange(old.fd, &off, to.fd, nil, len(data), 0)
			if err != nil || n == 0 {
				t.Fatalf("copy_file_range at %d: %d, %v", off, n, err)
			}
		}
		to.close()
		if got := unprotected(m); got != "f 1" {
			t.Errorf("unprotected: %q, want %q", got, "f 1")
		}
		beside := open(t, m, "f", unix.O_RDONLY)
		beside.reads("a new open beside the old one", data, pageAt(20), pageAt(40))
		beside.close()
		old.close()
		passing(t, m, 0)
		eventually(t, "full service", func() bool {
			f := open(t, m, "f", unix.O_RDONLY)
			defer f.close()
			return m.Status().Protection.Passthrough == 0
		})
		f := open(t, m, "f", unix.O_RDONLY)
		f.maps("a mapping in full service", data, pageAt(20), pageAt(40))
		f.close()
		m.Check("f", data, pageAt(20), pageAt(40))
		m.Check("copy", data, pageAt(20), pageAt(40))
	})
	t.Run("rw", func(t *testing.T) {
		m := harness.New(t, harness.Config{Backing: d.At, Flags: []string{"--protect", "rw"}})
		f := open(t, m, "f", unix.O_RDWR)
		f.reads("read", data, pageAt(20), pageAt(40))
		if !faults(t, f, 20*page) {
			t.Error("a mapping gives no SIGBUS")
		}
		f.close()
		m.Check("f", data, pageAt(20), pageAt(40))
	})
}

// faults reports whether touching a mapping of f at off is SIGBUS.
func faults(t *testing.T, f *file, off int64) (sigbus bool) {
	t.Helper()
	b := f.mapped()
	defer unmap(t, b)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			sigbus = true
		}
	}()
	return len(bytes.Clone(b[off:off+1])) != 1 // it is read
}

// What --protect leaves open is said when mounting, and in status.
func TestLimitsAreSaid(t *testing.T) {
	for protect, words := range map[string][]string{
		"rw":    {"protect rw: programs that map files get SIGBUS", "write whole pages", "the kernel does not see simulated poison"},
		"known": {"protect known: the first touch of poison", "first open on after its poison is known", "the kernel does not see simulated poison"},
	} {
		m := simulated(t, protect)
		for _, want := range words {
			if !strings.Contains(m.Stderr(), want) {
				t.Errorf("%s: mount does not say %q: %s", protect, want, m.Stderr())
			}
		}
		if !strings.Contains(m.Ready(), "protect "+protect) {
			t.Errorf("ready line: %s", m.Ready())
		}
		if got := m.Status().Protection; got == nil || got.Mode != protect {
			t.Errorf("status in JSON: %+v", got)
		}
		if got := harness.Mendfs(t, "status", m.At).Stdout; !strings.Contains(got, protect+", 0 files open in passthrough") {
			t.Errorf("status: %s", got)
		}
		m.Stop()
	}
	m := harness.Simulated(t, "dax")
	if got := m.Status().Protection; got == nil || got.Mode != "full" || got.Passthrough != 0 {
		t.Errorf("status without --protect: %+v", got)
	}
}

// refused mounts, which must fail so and leave nothing mounted.
func refused(t *testing.T, exit int, words []string, program string, args ...string) {
	t.Helper()
	r := harness.Run(t, program, args...)
	if r.Exit != exit {
		t.Errorf("exit %d, want %d: %s", r.Exit, exit, r.Stderr)
	}
	for _, want := range words {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("it does not say %q: %s", want, r.Stderr)
		}
	}
}

func TestRefusals(t *testing.T) {
	harness.Need(t, harness.FUSE, harness.Root, harness.Program("setpriv"))
	dir := harness.Dir(t)
	sub := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o777); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b, at := sub("b"), sub("m")
	state := filepath.Join(dir, "s")
	bin := os.Getenv("MENDFS_BIN")
	mount := func(protect string) []string {
		return []string{"mount", "--protect", protect, "--state", state, b, at}
	}
	refused(t, control.ExitUsage, []string{`"some"`, "full, rw, known"}, bin, mount("some")...)
	refused(t, control.ExitUsage, []string{"--protect is empty"}, bin, mount("")...)
	for _, protect := range []string{"rw", "known"} {
		refused(t, control.ExitUsage, []string{"--protect " + protect, "CAP_SYS_ADMIN", "mount as root"},
			"setpriv", append([]string{"--reuid", "1000", "--regid", "1000", "--clear-groups", bin}, mount(protect)...)...)
		// A filesystem that stands on others can't be passed on.
		upper, work, over := sub(protect+"u"), sub(protect+"w"), sub(protect+"o")
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", b, upper, work)
		if err := unix.Mount("overlay", over, "overlay", 0, options); err != nil {
			t.Fatal(err)
		}
		refused(t, control.ExitOperational, []string{"--protect " + protect, over, "leave it out"},
			bin, "mount", "--protect", protect, "--state", state, over, at)
		if err := unix.Unmount(over, 0); err != nil {
			t.Error(err)
		}
	}
	if kind := harness.MountedAs(t, at); kind != "" {
		t.Errorf("%s is mounted as %s", at, kind)
	}
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a state directory was left: %v", err)
	}
}

// In strict, programs get EIO from either side.
func TestStrict(t *testing.T) {
	for _, protect := range []string{"rw", "known"} {
		m := harness.Simulated(t, "dax", "--protect", protect, "--semantics", "strict")
		m.File("f", 1, 8*page)
		old := open(t, m, "f", unix.O_RDONLY)
		m.Inject("f", pageAt(2))
		f := open(t, m, "f", unix.O_RDONLY)
		if _, err := unix.Pread(f.fd, make([]byte, page), 2*page); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: read of poison: %v, want EIO", protect, err)
		}
		if n, err := unix.Pread(f.fd, make([]byte, page), 3*page); n != page || err != nil {
			t.Errorf("%s: read beside it: %d, %v", protect, n, err)
		}
		f.close()
		old.close()
		m.Stop()
	}
}

// --verify-writes finds poison under a write that nobody knew of, and says
// that it is on.
func TestVerifyWrites(t *testing.T) {
	m := harness.Simulated(t, "dax", "--verify-writes")
	data := m.File("f", 1, 8*page)
	m.InjectLatent("f", rng{Off: 2*page + 640, Len: 64}, rng{Off: 5 * page, Len: 64})
	data = m.Overwrite("f", data, harness.Pattern(2, page), 2*page)
	data = m.Overwrite("f", data, harness.Pattern(3, sector), 5*page)
	if left := m.Poison("f"); !left.Empty() {
		t.Errorf("still poisoned: %v", left)
	}
	m.Check("f", data)
	if !strings.Contains(m.Ready(), "verify-writes") {
		t.Errorf("ready line: %s", m.Ready())
	}
	if got := harness.Mendfs(t, "status", m.At).Stdout; !strings.Contains(got, "verify writes") {
		t.Errorf("status: %s", got)
	}
}
