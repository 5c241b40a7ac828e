// Package crash shows that kill -9 of the daemon at any instant loses nothing
// that could be salvaged and rolls back nothing newer (promise P4).
package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	page   = harness.Page
	sector = harness.Sector
	pages  = 48
)

type rng = harness.Range

func TestMain(m *testing.M) {
	// For the harness, should it have to build the binary.
	if err := os.Setenv("GOFLAGS", os.Getenv("GOFLAGS")+" -tags=failpoints"); err != nil {
		panic(err)
	}
	harness.Main(m)
}

// victim is a file whose every second page is bad, and what it may hold.
type victim struct {
	t    *testing.T
	m    *harness.Mount
	name string
	want []byte      // what was written and answered last
	open []write     // writes that were sent and not answered: they happened, or not, or in part
	gone *ranges.Set // what may be lost
}

type write struct {
	off  int64
	data []byte
}

func newVictim(t *testing.T, m *harness.Mount, name string, seed uint64) *victim {
	t.Helper()
	v := &victim{t: t, m: m, name: name, want: m.File(name, seed, pages*page-100), gone: ranges.Of()}
	v.poison()
	return v
}

// poison makes every second page bad, anew.
func (v *victim) poison() {
	v.t.Helper()
	var bad []rng
	for n := int64(0); n < pages; n += 2 {
		r := rng{Off: n*page + 1024, Len: 1}
		bad = append(bad, r)
		v.gone.Add(r.Widen(sector))
	}
	v.m.Inject(v.name, bad...)
}

// overwrite writes bad pages, in part and whole, until it is stopped, the
// mount is gone, or it has written most times.
func (v *victim) overwrite(seed uint64, most int, stop <-chan struct{}) {
	f, err := os.OpenFile(v.m.Path(v.name), os.O_RDWR, 0)
	if err != nil {
		v.crashed(err)
		return
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(seed, 5))
	for range most {
		select {
		case <-stop:
			return
		default:
		}
		w := write{off: 2 * random.Int64N(pages/2) * page, data: harness.Pattern(random.Uint64(), page)}
		if random.IntN(3) > 0 {
			w.off += random.Int64N(2000)
			w.data = w.data[:1+random.IntN(2000)]
		}
		if _, err := f.WriteAt(w.data, w.off); err != nil {
			v.crashed(err)
			v.open = append(v.open, w)
			return
		}
		v.want = harness.Lay(v.want, w.data, w.off)
		v.gone.Remove(rng{Off: w.off, Len: int64(len(w.data))})
	}
}

// crashed complains of errors that a dead daemon is no reason for.
func (v *victim) crashed(err error) {
	if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EIO) {
		v.t.Errorf("in a crash: %v", err)
	}
}

// crash kills the daemon while the file is overwritten, after the given time.
func (v *victim) crash(seed uint64, after time.Duration) {
	v.t.Helper()
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { v.overwrite(seed, math.MaxInt, stop) })
	time.Sleep(after)
	v.m.Kill()
	close(stop)
	writer.Wait()
}

// check compares each byte with what it may be: the last one that was written,
// or that of a write which was under way in the crash; or zero and in the
// ledger, if poison hit it and nobody wrote it since. What it finds is what the file
// holds from then on.
func (v *victim) check() {
	v.t.Helper()
	got, err := os.ReadFile(v.m.Path(v.name))
	if err != nil {
		v.t.Fatal(err)
	}
	if len(got) < len(v.want) {
		v.t.Fatalf("%s has %d bytes, want %d", v.name, len(got), len(v.want))
	}
	want := v.want
	for _, w := range v.open {
		for i, b := range w.data {
			if at := int(w.off) + i; at < len(got) && got[at] == b {
				want = grow(want, at+1)
				want[at] = b
				v.gone.Remove(rng{Off: int64(at), Len: 1})
			}
		}
	}
	v.open = nil
	var lost []rng
	for _, row := range v.m.Lost(v.name) {
		lost = append(lost, slices.Collect(v.gone.Within(row.Range))...)
		// That a reinitialized range was overwritten is in the ledger within a
		// second. A crash before that leaves a row too many, never one too few.
		if row.State != ledger.Reinitialized && !v.gone.Contains(row.Range) {
			v.t.Errorf("%s: %v is lost (%s), and did not have to be", v.name, row.Range, row.State)
		}
	}
	harness.Compare(v.t, v.name, got, want, lost...)
	v.want = want
}

// grow is data with at least n bytes: a write that was under way may have made
// the file longer.
func grow(data []byte, n int) []byte {
	if len(data) >= n {
		return data
	}
	return append(data, make([]byte, n-len(data))...)
}

func TestKillAtAnyInstant(t *testing.T) {
	for _, profile := range []string{"dax", "dax-5.18"} {
		t.Run(profile, func(t *testing.T) {
			m := harness.Simulated(t, profile)
			for seed := range uint64(12) {
				v := newVictim(t, m, fmt.Sprint("f", seed), seed)
				random := rand.New(rand.NewPCG(seed, 6))
				for round := range 2 {
					if round > 0 {
						v.poison()
					}
					v.crash(seed, time.Duration(random.IntN(40))*time.Millisecond)
					m.Start()
					v.check()
					if s := m.Status(); s.OpenIntents != 0 {
						t.Errorf("after a mount %d intents are open", s.OpenIntents)
					}
				}
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			m.Restart()
		})
	}
}

// openIntents are the repairs that a crash has interrupted.
func openIntents(t *testing.T, m *harness.Mount) []control.Pending {
	t.Helper()
	var answer struct {
		Pending []control.Pending `json:"pending"`
	}
	r := harness.Mendfs(t, "lost", "--pending", "--json", "--state", m.State)
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil {
		t.Fatalf("mendfs lost --pending: exit %d: %s%s: %v", r.Exit, r.Stdout, r.Stderr, err)
	}
	return answer.Pending
}

// crashWithin kills the daemon again and again until a repair is interrupted
// whose intent is open, and returns the victim, not mounted.
func crashWithin(t *testing.T, m *harness.Mount) *victim {
	t.Helper()
	v := newVictim(t, m, "f", 1)
	random := rand.New(rand.NewPCG(1, 7))
	for try := range uint64(60) {
		v.crash(try, time.Duration(2+random.IntN(20))*time.Millisecond)
		if len(openIntents(t, m)) > 0 {
			return v
		}
		m.Start()
		v.check()
		v.poison()
	}
	t.Fatal("60 crashes, and none within a repair")
	return nil
}

// A repair is interrupted; before the next mount somebody changes the backing
// directory without mendfs. Replay writes nothing over what is newer.
func TestBackingChangedBetweenCrashAndReplay(t *testing.T) {
	fresh := harness.Pattern(77, pages*page)
	tests := []struct {
		name   string
		change func(t *testing.T, m *harness.Mount)
		want   []byte // nil: the file is gone
	}{
		{"rewritten by cp", func(t *testing.T, m *harness.Mount) {
			run(t, m, `cp "$1" f`, outside(t, fresh))
		}, fresh},
		{"rewritten shorter", func(t *testing.T, m *harness.Mount) {
			run(t, m, `cp "$1" f`, outside(t, fresh[:5*page+10]))
		}, fresh[:5*page+10]},
		{"removed", func(t *testing.T, m *harness.Mount) { run(t, m, `rm f`) }, nil},
		{"truncated to nothing", func(t *testing.T, m *harness.Mount) { run(t, m, `truncate -s 0 f`) }, []byte{}},
		{"punched", func(t *testing.T, m *harness.Mount) {
			run(t, m, `fallocate -p -o 0 -l "$1" f`, fmt.Sprint(pages*page))
		}, make([]byte, pages*page-100)},
		{"replaced under the same name", func(t *testing.T, m *harness.Mount) {
			run(t, m, `cp "$1" new && mv new f`, outside(t, fresh))
		}, fresh},
		{"inode reused", reuseInode(fresh), fresh},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := harness.Simulated(t, "dax")
			crashWithin(t, m)
			test.change(t, m)
			m.Start()
			if s := m.Status(); s.OpenIntents != 0 {
				t.Errorf("after the mount %d intents are open", s.OpenIntents)
			}
			if test.want == nil {
				if _, err := os.Stat(m.Path("f")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the removed file: %v", err)
				}
				return
			}
			m.CheckContent("f", test.want)
			m.Restart()
			m.CheckContent("f", test.want)
		})
	}
}

// run runs a script in the backing directory, while nothing is mounted.
func run(t *testing.T, m *harness.Mount, script string, args ...string) {
	t.Helper()
	r := harness.Run(t, "bash", append([]string{"-euc", `cd "$0"; ` + script, m.Backing}, args...)...)
	if r.Exit != 0 {
		t.Fatalf("%s: exit %d: %s", script, r.Exit, r.Stderr)
	}
}

// outside is a file that lies in no mount.
func outside(t *testing.T, data []byte) string {
	t.Helper()
	path := harness.Dir(t) + "/file"
	harness.WriteFile(t, path, data)
	return path
}

// reuseInode removes the file and makes others until one has its inode number.
func reuseInode(data []byte) func(t *testing.T, m *harness.Mount) {
	return func(t *testing.T, m *harness.Mount) {
		t.Helper()
		number := func(path string) uint64 {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			return st.Ino
		}
		want := number(m.Below("f"))
		run(t, m, `rm f`)
		for i := range 2000 {
			path := m.Below(fmt.Sprint("new", i))
			harness.WriteFile(t, path, nil)
			if number(path) == want {
				harness.WriteFile(t, path, data)
				if err := os.Rename(path, m.Below("f")); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatalf("2000 new files, and none with the inode number %d", want)
	}
}

// The file is found by what it is, not by what it is called.
func TestReplayFindsRenamedFilesAndHardLinks(t *testing.T) {
	for name, change := range map[string]string{
		"renamed":                       `mv f g`,
		"two links":                     `ln f g`,
		"two links, the first removed":  `ln f g && rm f`,
		"another file in its old place": `mv f g && cp g f2 && mv f2 f`,
	} {
		t.Run(name, func(t *testing.T) {
			m := harness.Simulated(t, "dax")
			v := crashWithin(t, m)
			run(t, m, change)
			m.Start()
			v.name = "g"
			v.check()
			m.Restart()
			v.check()
		})
	}
}

// What the application wrote after a repair stays, whatever is killed then.
func TestNewerDataIsNotRolledBack(t *testing.T) {
	m := harness.Simulated(t, "dax")
	v := crashWithin(t, m)
	m.Start()
	v.check()
	for round := range uint64(3) {
		data := harness.Pattern(200+round, pages*page)
		v.want = m.Overwrite("f", v.want, data, 0)
		v.gone = ranges.Of()
		m.Kill()
		m.Start()
		v.check()
	}
	v.want = m.Overwrite("f", v.want, harness.Pattern(9, pages*page), 0)
	m.Check("f", v.want)
	m.Cured("f", rng{Len: pages * page})
}
