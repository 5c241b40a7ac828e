// Package protect shows what --protect=rw and --protect=known leave to the
// kernel, and what is protected all the same; and that no open ever fails
// because of the way in which another one is served.
//
// Simulated poison is not seen by the kernel: what it serves by itself reads as
// if there were none. That is how the tests tell who served.
package protect

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
