package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const bootID = "/proc/sys/kernel/random/boot_id"

// TestPowerCutOfEverything: the daemon is killed, and what the backing filesystem and the
// state disk had in their memory only is gone: sector by sector, or not. After the
// next mount, in another boot, every byte is what was synced last or written since, or it was
// poisoned and is in the ledger. MENDFS_CUTS is how many cuts there are.
//
// The test runs in a mount namespace of its own, where the boot id is what it says.
func TestPowerCutOfEverything(t *testing.T) {
	needFailpoints(t)
	harness.Need(t, harness.FUSE, harness.Root)
	if os.Getenv("MENDFS_BOOT_ID") != "" {
		cutEverything(t)
		return
	}
	left := 10 * time.Minute
	if deadline, ok := t.Deadline(); ok {
		left = time.Until(deadline) - 10*time.Second
	}
	again := exec.Command(os.Args[0], "-test.run=^TestPowerCutOfEverything$", "-test.v", "-test.timeout="+left.String())
	again.Env = append(os.Environ(), "MENDFS_BOOT_ID="+filepath.Join(harness.Dir(t), "boot_id"))
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := again.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("in a mount namespace: %v", err)
	}
}

// reboot has every process that begins from now on see another boot id.
func reboot(t *testing.T, random *rand.Rand) {
	t.Helper()
	id := fmt.Sprintf("%08x-0000-4000-8000-%012x\n", random.Uint32(), random.Uint32())
	if err := os.WriteFile(os.Getenv("MENDFS_BOOT_ID"), []byte(id), 0o644); err != nil {
		t.Fatal(err)
	}
}

func cutEverything(t *testing.T) {
	cuts := 20
	if text := os.Getenv("MENDFS_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64() | 1
	random := rand.New(rand.NewPCG(seed, 9))
	reboot(t, random)
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(os.Getenv("MENDFS_BOOT_ID"), bootID, "", unix.MS_BIND, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bootID, 0); err != nil {
			t.Error(err)
		}
	})
	p := newPowered(t, seed, random)
	for p.cuts < cuts && !t.Failed() {
		p.round()
	}
	t.Logf("%d cuts, %d of them in a mount; %d intents were open, %d lost bytes were looked at", p.cuts, p.inMount, p.open, p.zeros)
	if p.open == 0 {
		t.Error("no cut has met a repair")
	}
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
}

// powered is a mount of which all media forget what was not synced, and its one file.
type powered struct {
	t              *testing.T
	m              *harness.Mount
	backing, state *harness.BadMedia
	random         *rand.Rand

	synced  []byte      // what the file held at its last fsync
	since   []write     // what was written since, the last perhaps without an answer
	gone    *ranges.Set // what may be lost
	cuts    int
	inMount int
	open    int
	zeros   int
}

func newPowered(t *testing.T, seed uint64, random *rand.Rand) *powered {
	t.Helper()
	p := &powered{t: t, random: random, gone: ranges.Of(),
		backing: harness.NewBadMedia(t, "-volatile", fmt.Sprint(seed)),
		state:   harness.NewBadMedia(t, "-cached", "-volatile", fmt.Sprint(seed+2)),
	}
	p.synced = p.backing.File("f", seed, pages*page-100)
	p.m = harness.New(t, harness.Config{Backing: p.backing.At, State: filepath.Join(p.state.At, "s")})
	return p
}

// round is poison, work, a cut, perhaps another in the mount behind it, and a look at all bytes.
func (p *powered) round() {
	p.t.Helper()
	for range 12 {
		bad := rng{Off: p.random.Int64N(int64(len(p.synced))), Len: 1}
		p.backing.Bad("f", bad)
		p.gone.Add(bad.Widen(harness.Line).Intersect(rng{Len: int64(len(p.synced))}))
	}
	var writer sync.WaitGroup
	writer.Go(p.work)
	time.Sleep(time.Duration(5+p.random.IntN(60)) * time.Millisecond)
	p.m.Kill()
	writer.Wait()
	p.cut()
	p.open += len(openIntents(p.t, p.m))
	if p.random.IntN(2) == 0 && p.startToDie() {
		p.inMount++
		p.cut()
	}
	p.m.Start()
	p.check()
}

// cut is the end of the power, of a dead daemon, and another boot.
func (p *powered) cut() {
	p.t.Helper()
	p.cuts++
	p.backing.Cut()
	p.state.Cut()
	reboot(p.t, p.random)
}

// startToDie mounts with an order to die soon; it reports whether that came before the
// mount was ready. If not, the daemon is killed.
func (p *powered) startToDie() bool {
	p.t.Helper()
	p.t.Setenv("MENDFS_FAILPOINT", string(at("any", 1+p.random.IntN(25))))
	err := p.m.TryStart()
	p.t.Setenv("MENDFS_FAILPOINT", "")
	switch {
	case err == nil:
		p.m.Kill()
	case !strings.Contains(err.Error(), "signal: killed"):
		p.t.Fatal(err)
	}
	return err != nil
}

// work reads, writes and syncs the file until the mount is dead.
func (p *powered) work() {
	f, err := os.OpenFile(p.m.Path("f"), os.O_RDWR, 0)
	if err != nil {
		p.crashed(err)
		return
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(p.random.Uint64(), 5))
	for err == nil {
		switch random.IntN(8) {
		case 0:
			if err = f.Sync(); err == nil {
				p.durable()
			}
		case 1:
			_, err = f.ReadAt(make([]byte, page), random.Int64N(pages-1)*page)
		default:
			w := write{off: random.Int64N(pages-1) * page, data: harness.Pattern(random.Uint64(), page)}
			if random.IntN(3) > 0 {
				w.off += random.Int64N(2000)
				w.data = w.data[:1+random.IntN(2000)]
			}
			p.since = append(p.since, w)
			_, err = f.WriteAt(w.data, w.off)
		}
	}
	p.crashed(err)
}

func (p *powered) crashed(err error) {
	if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EIO) {
		p.t.Errorf("in a crash: %v", err)
	}
}

// durable is an fsync that worked.
func (p *powered) durable() {
	for _, w := range p.since {
		p.synced = harness.Lay(p.synced, w.data, w.off)
		p.gone.Remove(rng{Off: w.off, Len: int64(len(w.data))})
	}
	p.since = nil
}

// check compares each byte with all that it may be. What it finds is made durable.
func (p *powered) check() {
	p.t.Helper()
	f, err := os.OpenFile(p.m.Path("f"), os.O_RDWR, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(p.synced)+1)
	if n, _ := f.ReadAt(got, 0); n != len(p.synced) { // EOF
		p.t.Fatalf("the file has %d bytes, want %d", n, len(p.synced))
	}
	got = got[:len(p.synced)]
	recorded := ranges.Of()
	for _, row := range p.m.Lost("f") {
		recorded.Add(row.Range)
		// A record that zeros were overwritten may come later than the data.
		if row.State == ledger.Lost && !p.gone.Contains(row.Range) {
			p.t.Errorf("%v is lost, and did not have to be", row.Range)
		}
	}
	wrong := ranges.Of()
	for i, b := range got {
		here := rng{Off: int64(i), Len: 1}
		switch {
		case b != 0 && !p.mayBe(i, b), b == 0 && !(recorded.Contains(here) && p.gone.Contains(here)):
			wrong.Add(here)
		case b == 0: // nobody writes a zero
			p.zeros++
		}
	}
	if !wrong.Empty() {
		p.t.Errorf("cut %d: wrong bytes: %v; recorded: %v; could be lost: %v", p.cuts, wrong, recorded, p.gone)
	}
	if s := p.m.Status(); s.OpenIntents != 0 {
		p.t.Errorf("after a mount %d intents are open", s.OpenIntents)
	}
	if err := f.Sync(); err != nil {
		p.t.Errorf("fsync after the check: %v", err)
	}
	p.synced, p.since = got, nil
}

// mayBe reports whether b is what byte i was synced as, or written as since.
func (p *powered) mayBe(i int, b byte) bool {
	if b == p.synced[i] {
		return true
	}
	for _, w := range p.since {
		if at := i - int(w.off); at >= 0 && at < len(w.data) && w.data[at] == b {
			return true
		}
	}
	return false
}
