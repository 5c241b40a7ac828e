package crash

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/tests/harness"
)

// TestKillAtEachFailpoint has the daemon kill itself at each step of repairs,
// and of the replay that follows, then at random steps, and compares every byte
// after each. MENDFS_KILLS is how many kills there are at least.
func TestKillAtEachFailpoint(t *testing.T) {
	needFailpoints(t)
	least := 25
	if text := os.Getenv("MENDFS_KILLS"); text != "" {
		var err error
		if least, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 8))
	v := map[string]*ordered{}
	for _, profile := range []string{"dax", "dax-5.18"} {
		v[profile] = &ordered{t: t, m: harness.Simulated(t, profile), profile: profile, random: random}
	}
	for _, s := range []failpoint.Step{failpoint.PagePunching, failpoint.PagePunched} {
		v["dax-5.18"].round(at(s, 1+random.IntN(3)), "", true)
	}
	for _, s := range []failpoint.Step{
		failpoint.IntentDurable, failpoint.PageCleared, failpoint.PagesWritten, failpoint.PagesCutBack, failpoint.PagesDurable,
		failpoint.IntentClosed,
	} {
		v["dax"].round(at(s, 1+random.IntN(3)), "", true)
	}
	for _, s := range []failpoint.Step{failpoint.JournalAppended, failpoint.JournalSynced, failpoint.LedgerWriting, failpoint.LedgerWritten} {
		v["dax"].round(at(s, 8+random.IntN(5)), "", true) // the first are in the mount
	}
	for _, s := range []failpoint.Step{failpoint.JournalFresh, failpoint.JournalReplaced, failpoint.ReplayBegins, failpoint.ReplayWritten,
		failpoint.ReplayRestored, failpoint.ReplaySettled, failpoint.ReplayEnds, failpoint.LedgerCheckpoint} {
		v["dax-5.18"].round(at(failpoint.PagePunched, 1), at(s, 1), true)
	}
	for v["dax"].kills+v["dax-5.18"].kills < least && !t.Failed() {
		profile := []string{"dax", "dax-5.18"}[random.IntN(2)]
		v[profile].round(at("any", 1+random.IntN(120)), at("any", 1+random.IntN(25)), false)
	}
	t.Logf("%d kills, %d of them in a mount", v["dax"].kills+v["dax-5.18"].kills, v["dax"].inMount+v["dax-5.18"].inMount)
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
}

// order is when the daemon shall kill itself, as package failpoint has it.
type order string

func at(s failpoint.Step, nth int) order { return order(fmt.Sprintf("%s:%d", s, nth)) }

// ordered is a mount that kills itself when it is told to.
type ordered struct {
	t       *testing.T
	m       *harness.Mount
	profile string
	random  *rand.Rand
	rounds  int

	kills, inMount int
}

// round lets the daemon die while a file is overwritten, and, if there is an
// order for that, in the mount that follows. must says that it has to come to
// that.
func (o *ordered) round(writing, mounting order, must bool) {
	o.t.Helper()
	o.rounds++
	v := newVictim(o.t, o.m, fmt.Sprint("f", o.rounds), o.random.Uint64())
	o.m.Stop()
	if err := o.start(writing); err != nil && must {
		o.t.Fatalf("%s, %s: %v", o.profile, writing, err)
	} else if err == nil {
		v.overwrite(o.random.Uint64(), 60, nil)
		if !o.died() && must {
			o.t.Errorf("%s: it never came to %s", o.profile, writing)
		}
	}
	o.kills++
	if mounting != "" {
		switch err := o.start(mounting); {
		case err != nil:
			o.kills++
			o.inMount++
		case must:
			o.t.Fatalf("%s: a mount never came to %s", o.profile, mounting)
		default:
			o.m.Kill()
		}
	}
	o.m.Start()
	v.check()
	if s := o.m.Status(); s.OpenIntents != 0 {
		o.t.Errorf("%s, %s, %s: after a mount %d intents are open", o.profile, writing, mounting, s.OpenIntents)
	}
	if o.t.Failed() {
		o.t.Fatalf("%s: killed at %s, then at %q", o.profile, writing, mounting)
	}
}

// start mounts; the error is that the mount ended before it was ready.
func (o *ordered) start(when order) error {
	o.t.Helper()
	o.t.Setenv("MENDFS_FAILPOINT", string(when)) // the daemon inherits it
	err := o.m.TryStart("--simulate", o.profile)
	o.t.Setenv("MENDFS_FAILPOINT", "")
	if err != nil && !strings.Contains(err.Error(), "signal: killed") {
		o.t.Fatal(err)
	}
	return err
}

// died reports whether the daemon has killed itself. One that has not is killed.
func (o *ordered) died() bool {
	o.t.Helper()
	pid := o.m.Pid()
	for range 200 { // dead but not reaped yet, perhaps
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			if said := o.m.Stderr(); strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic: ") {
				o.t.Errorf("before it died the mount said: %s", said)
			}
			return true
		}
		time.Sleep(time.Millisecond)
	}
	o.m.Kill()
	return false
}

// needFailpoints fails where the binary was built without them: it would not die.
func needFailpoints(t *testing.T) {
	t.Helper()
	info, err := buildinfo.ReadFile(os.Getenv("MENDFS_BIN"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" && strings.Contains(s.Value, "failpoints") {
			return
		}
	}
	t.Fatalf("%s was built without -tags failpoints", os.Getenv("MENDFS_BIN"))
}
