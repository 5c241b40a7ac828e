package early

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

func eager(t *testing.T, profile string, flags ...string) *harness.Mount {
	t.Helper()
	return harness.Simulated(t, profile, append(flags, "--repair", "eager")...)
}

// cleared waits until no poison is left under the file.
func cleared(t *testing.T, m *harness.Mount, rel string) {
	t.Helper()
	eventually(t, "no poison left in "+rel, func() bool { return m.Poison(rel).Empty() })
}

// Known poison is cleared though nobody reads or writes: what can be had of the
// pages stays, the rest is zero and recorded, and the file's times are as they were.
func TestEagerClearsKnownPoison(t *testing.T) {
	for _, profile := range []string{"dax", "dax-5.18", "line"} {
		t.Run(profile, func(t *testing.T) {
			m := eager(t, profile)
			data := m.File("f", 1, 64*page+100)
			old := time.Unix(1_000_000_000, 123456789)
			if err := os.Chtimes(m.Path("f"), old, old); err != nil {
				t.Fatal(err)
			}
			lost := []rng{sectorAt(0), sectorAt(7*page + 3584), {Off: 20 * page, Len: 3 * page}, {Off: 64 * page, Len: 64}}
			m.Inject("f", lost...)
			cleared(t, m, "f")
			if profile != "line" {
				lost[3].Len = 100 // to the end of the file
			}
			info, err := os.Stat(m.Path("f"))
			if err != nil || !info.ModTime().Equal(old) || info.Size() != int64(len(data)) {
				t.Errorf("mtime %v and size %d, %v; were %v and %d", info.ModTime(), info.Size(), err, old, len(data))
			}
			m.Check("f", data, lost...)
			for _, row := range m.Lost("f") {
				if row.State != ledger.Reinitialized {
					t.Errorf("row %+v", row)
				}
			}
			if s := m.Status(); s.OpenIntents != 0 || s.Repair != "eager" {
				t.Errorf("status: %d intents open, repair %q", s.OpenIntents, s.Repair)
			}
			m.Restart()
			m.Check("f", data, lost...)
		})
	}
}

// Latent poison is cleared once a reader has met it.
func TestEagerClearsWhatReadersMeet(t *testing.T) {
	m := eager(t, "dax")
	data := m.File("f", 1, 16*page)
	m.InjectLatent("f", sectorAt(5*page))
	m.Check("f", data, sectorAt(5*page))
	cleared(t, m, "f")
	m.Check("f", data, sectorAt(5*page))
	if got := told(m, event.RepairFailed); len(got) > 0 {
		t.Errorf("repairs failed: %q", got)
	}
}

// Without it, poison that nobody writes over stays.
func TestOnWriteLeavesKnownPoison(t *testing.T) {
	m := harness.Simulated(t, "dax", "--repair", "on-write")
	data := m.File("f", 1, 4*page)
	m.Inject("f", sectorAt(page))
	m.Check("f", data, sectorAt(page))
	time.Sleep(3 * time.Second) // longer than an eager mount takes
	if m.Poison("f").Empty() {
		t.Error("the poison is gone")
	}
}

// What --protect=known leaves to the kernel is repaired once it is not open any
// more: then the next open finds no poison.
func TestEagerWithProtectKnown(t *testing.T) {
	harness.Need(t, harness.Root)
	m := eager(t, "dax", "--protect", "known")
	data := m.File("f", 1, 16*page)
	lost := sectorAt(3 * page)
	eventually(t, "no file in passthrough", func() bool { return m.Status().Protection.Passthrough == 0 })
	f, err := os.Open(m.Path("f"))
	if err != nil {
		t.Fatal(err)
	}
	m.Inject("f", lost)
	time.Sleep(3 * time.Second) // longer than it takes where nobody has the file
	if m.Poison("f").Empty() {
		t.Error("it was rewritten while the kernel served it")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cleared(t, m, "f")
	m.Check("f", data, lost)

	m.File("closed", 2, 16*page)
	eventually(t, "no file in passthrough", func() bool { return m.Status().Protection.Passthrough == 0 })
	m.Inject("closed", lost)
	cleared(t, m, "closed")
}

// Programs that read, write and map a file meanwhile see what they wrote, and
// nothing but zeros where bytes were lost; none of them gets SIGBUS or an error.
func TestEagerUnderMappings(t *testing.T) {
	const pages, rounds = 64, 40
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	m := eager(t, "dax")
	data := m.File("f", 1, pages*page)
	poisoned := ranges.Of()
	stop, work := make(chan struct{}), sync.WaitGroup{}
	var stores, writes atomic.Int64
	work.Go(func() { stores.Store(storeThrough(t, m.Path("f"), pages, stop)) })
	work.Go(func() { writes.Store(writeThrough(t, m.Path("f"), pages, stop)) })
	work.Go(func() { readThrough(t, m.Path("f"), data, stop) })
	for range rounds {
		r := sectorAt(random.Int64N(pages)*page + random.Int64N(6)*sector) // not where they write
		poisoned.Add(r)
		m.Inject("f", r)
	}
	cleared(t, m, "f")
	close(stop)
	work.Wait()
	if t.Failed() {
		return
	}
	for n := range int64(pages) {
		data = harness.Lay(data, stamp("store", stores.Load()), n*page+mapped)
		data = harness.Lay(data, stamp("write", writes.Load()), n*page+written)
	}
	m.CheckWithin("f", data, poisoned)
	if got := told(m, event.RepairFailed); len(got) > 0 {
		t.Errorf("repairs failed: %q", got)
	}
	if !strings.Contains(fmt.Sprint(told(m, event.Reinitialized)), "f [") {
		t.Error("nothing was repaired")
	}
}

// Where in each page the mapping stores and the writer writes.
const (
	mapped  = 6 * sector
	written = 7 * sector
)

func stamp(who string, round int64) []byte { return fmt.Appendf(nil, "%s %016d", who, round) }

// storeThrough stores into all pages of a mapping, again and again, and returns the
// last round.
func storeThrough(t *testing.T, path string, pages int64, stop <-chan struct{}) (round int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, int(pages)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer unix.Munmap(b)
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		round++
		for n := range pages {
			copy(b[n*page+mapped:], stamp("store", round))
		}
		if err := unix.Msync(b, unix.MS_SYNC); err != nil {
			t.Errorf("msync: %v", err)
			return round
		}
	}
	return round
}

// writeThrough is the same with write(2).
func writeThrough(t *testing.T, path string, pages int64, stop <-chan struct{}) (round int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer f.Close()
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		round++
		for n := range pages {
			if _, err := f.WriteAt(stamp("write", round), n*page+written); err != nil {
				t.Errorf("write: %v", err)
				return round
			}
		}
	}
	return round
}

// readThrough compares the sectors that nobody writes: each is as it was, or lost.
func readThrough(t *testing.T, path string, want []byte, stop <-chan struct{}) {
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	got, zero := make([]byte, len(want)), make([]byte, sector)
	for {
		select {
		case <-stop:
			return
		default:
		}
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Errorf("read: %v", err)
			return
		}
		for off := 0; off < len(want); off += sector {
			part := got[off : off+sector]
			if off%page < mapped && !bytes.Equal(part, want[off:off+sector]) && !bytes.Equal(part, zero) {
				t.Errorf("the sector at %d is neither what it was nor zero", off)
				return
			}
		}
	}
}
