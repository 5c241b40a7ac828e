// Package durable shows that what an application was told to be durable is so,
// with the records that it implies: kill -9 of the daemon comes right after.
package durable

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/tests/harness"
)

const page = harness.Page

func TestMain(m *testing.M) { harness.Main(m) }

// way is how an application writes durably.
type way struct {
	name  string
	flags int // of the open
	write func(f *os.File, data []byte, off int64) error
}

func ways() []way {
	then := func(sync func(fd int) error) func(*os.File, []byte, int64) error {
		return func(f *os.File, data []byte, off int64) error {
			if _, err := f.WriteAt(data, off); err != nil {
				return err
			}
			return sync(int(f.Fd()))
		}
	}
	flagged := func(flags int) func(*os.File, []byte, int64) error {
		return func(f *os.File, data []byte, off int64) error {
			n, err := unix.Pwritev2(int(f.Fd()), [][]byte{data}, off, flags)
			if err == nil && n != len(data) {
				err = fmt.Errorf("%d bytes of %d were written", n, len(data))
			}
			return err
		}
	}
	nothing := func(int) error { return nil }
	return []way{
		{"fsync", 0, then(unix.Fsync)},
		{"fdatasync", 0, then(unix.Fdatasync)},
		{"O_SYNC", unix.O_SYNC, then(nothing)},
		{"O_DSYNC", unix.O_DSYNC, then(nothing)},
		{"O_DIRECT and O_DSYNC", unix.O_DIRECT | unix.O_DSYNC, then(nothing)},
		{"RWF_DSYNC", 0, flagged(unix.RWF_DSYNC)},
		{"RWF_SYNC", 0, flagged(unix.RWF_SYNC)},
		{"msync", 0, mapped},
	}
}

// mapped writes through a shared mapping, and has it written back.
func mapped(f *os.File, data []byte, off int64) error {
	from := off &^ (page - 1)
	m, err := unix.Mmap(int(f.Fd()), from, int(off-from)+len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[off-from:], data)
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(m)
}

// TestRecordIsDurableWithTheData: bytes that were lost, and are zero on clean media
// since a repair, are written anew, durably. The ledger says so after kill -9.
func TestRecordIsDurableWithTheData(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			m := harness.Simulated(t, "dax")
			want := m.File("f", 1, 16*page)
			lost := harness.Range{Off: 3 * page, Len: harness.Sector}
			m.Inject("f", lost)
			first, err := os.OpenFile(m.Path("f"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := first.WriteAt([]byte("part"), 3*page+1024); err != nil { // the repair
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			want = harness.Lay(want, []byte("part"), 3*page+1024)
			f, err := os.OpenFile(m.Path("f"), os.O_RDWR|w.flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			data := alignedPattern(t, int(lost.Len))
			if err := w.write(f, data, lost.Off); err != nil {
				t.Fatal(err)
			}
			m.Kill()
			_ = f.Close() // ENOTCONN: the daemon is dead
			want = harness.Lay(want, data, lost.Off)
			got, err := os.ReadFile(m.Below("f"))
			if err != nil {
				t.Fatal(err)
			}
			harness.Compare(t, "f", got, want)
			rows := recorded(t, m)
			if len(rows) != 1 || rows[0].Range != lost || rows[0].State != ledger.Overwritten {
				t.Errorf("the ledger has %+v, want %v overwritten", rows, lost)
			}
		})
	}
}

// alignedPattern is memory that direct I/O takes.
func alignedPattern(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	copy(b, harness.Pattern(2, n))
	return b
}

// recorded is all rows of a state directory that nobody has mounted.
func recorded(t *testing.T, m *harness.Mount) []ledger.Row {
	t.Helper()
	r := harness.Mendfs(t, "lost", "--all", "--json", "--state", m.State)
	var out struct {
		Lost []ledger.Row `json:"lost"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil {
		t.Fatalf("mendfs lost: exit %d: %v: %s", r.Exit, err, r.Stderr)
	}
	return out.Lost
}
