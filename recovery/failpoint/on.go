//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Enabled says whether there are failpoints in this build.
const Enabled = true

// Points tell one test of the steps that one engine, journal or ledger reaches.
type Points struct {
	told atomic.Pointer[func(Step)]
}

// Set has fn called at each step from now on, by whoever reaches it and with
// the locks held there; nil ends it.
func (p *Points) Set(fn func(Step)) {
	if fn == nil {
		p.told.Store(nil)
		return
	}
	p.told.Store(&fn)
}

// Hit says that s is reached.
func (p *Points) Hit(s Step) {
	if fn := p.told.Load(); fn != nil {
		(*fn)(s)
	}
	ordered().hit(s)
}

// death is the order to die at the nth hit of a step.
type death struct {
	at   Step // "": never
	left atomic.Int64
}

const whatever Step = "any"

// ordered is what the environment says: an order to the process, read once.
var ordered = sync.OnceValue(func() *death {
	d, err := parse(os.Getenv("MENDFS_FAILPOINT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err) // a test that never dies would prove nothing
		os.Exit(2)
	}
	return d
})

func parse(text string) (*death, error) {
	d := &death{}
	if text == "" {
		return d, nil
	}
	name, count, ok := strings.Cut(text, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	known := Step(name) == whatever
	for _, s := range Steps() {
		known = known || s == Step(name)
	}
	if !ok || err != nil || n < 1 || !known {
		return nil, fmt.Errorf("MENDFS_FAILPOINT=%q: not the name of a step, a colon and a number from 1", text)
	}
	d.at = Step(name)
	d.left.Store(n)
	return d, nil
}

func (d *death) hit(s Step) {
	if d.at != s && d.at != whatever || d.left.Add(-1) != 0 {
		return
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL) // a process may always kill itself
	select {}                                // nothing more happens
}
