package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// apart are the tests that are not the first guest's: they take about half of the time.
// Two guests side by side use two processors better than one guest with two, whose
// programs mostly wait for each other.
const apart = "^(TestMended|TestTruth|TestFacts|TestKnownEarly)$"

// part is a guest, and what it has told.
type part struct {
	guest
	lab    *lab
	name   string
	facts  []string
	status string
	took   time.Duration // of processor time
}

// parts are the guests that run the tests. Some tests are run by one.
func (l *lab) parts(g guest) []*part {
	names := []string{"1", "2"}
	if l.run != "" {
		names = names[:1]
	}
	var out []*part
	for _, name := range names {
		own := g
		own.console, own.monitor = g.console+name, g.monitor+name
		out = append(out, &part{lab: l, guest: own, name: name, status: "it did not come to its end"})
	}
	return out
}

// script is what /init runs; it has which part it is from the kernel's command line.
func (l *lab) script() string {
	if l.run != "" {
		return fmt.Sprintf("run lab.test -test.run='%s'\n", l.run)
	}
	return fmt.Sprintf(`if grep -q lab.part=2 /proc/cmdline; then
	run lab.test -test.run='%[1]s'
	run security.test -test.run=TestHardQuotas
else
	run lab.test -test.skip='%[1]s'
fi
`, apart)
}

// test boots the guests, and fails unless all their tests passed and all their facts
// are as written down.
func (l *lab) test(ctx context.Context, g guest) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.timeout, fmt.Errorf("the guests did not end within %v", l.timeout))
	defer cancel()
	parts := l.parts(g)
	errs := make([]error, len(parts))
	var all sync.WaitGroup
	for i, p := range parts {
		all.Go(func() { errs[i] = p.test(ctx) }) // ends with the guest, at the latest with ctx
	}
	all.Wait()
	err := errors.Join(errs...)
	var facts []string
	var took time.Duration
	for _, p := range parts {
		facts, took = append(facts, p.facts...), took+p.took
	}
	switch {
	case l.accept:
		err = errors.Join(err, l.writeFacts(facts))
	case err == nil && l.run == "":
		err = l.compare(facts)
	}
	l.say("%d facts on %s, %.0fs of processor time", len(facts), g.kernel.release, took.Seconds())
	return err
}

func (p *part) test(ctx context.Context) error {
	var failed error
	took, err := p.boot(ctx, func(line string) {
		failed = errors.Join(failed, p.heed(line))
	})
	p.took = took
	if err = errors.Join(err, failed); err == nil && p.status != "0" {
		err = fmt.Errorf("tests in guest %s failed: %s", p.name, p.status)
	}
	if err != nil {
		p.lab.print("lab: the end of the messages of the kernel of guest %s:", p.name)
		err = errors.Join(err, p.showConsole(16<<10))
	}
	return err
}

// heed takes a line that the guest says.
func (p *part) heed(line string) (err error) {
	switch word, rest, _ := strings.Cut(line, " "); word {
	case "fact":
		p.facts = append(p.facts, rest)
		if p.lab.run == "" {
			return nil
		}
	case "lab:":
		if s, ok := strings.CutPrefix(rest, "status "); ok {
			p.status = s
		}
		if address, ok := strings.CutPrefix(rest, "machine check at "); ok {
			err = p.machineCheck(address)
		}
	}
	p.lab.say("%s| %s", p.name, line)
	return err
}

// bootTime is what a guest may need to its first line: ten seconds where the machine
// has time for it.
const bootTime = 2 * time.Minute

// boot runs the guest, and once more if it did not get as far as /init: an emulated
// processor of QEMU 7.2 once died on the way there (int3 in run_timer_softirq).
func (p *part) boot(ctx context.Context, line func(string)) (took time.Duration, err error) {
	for again := false; ; again = true {
		trial, cancel := context.WithCancelCause(ctx)
		late := time.AfterFunc(bootTime, func() { cancel(fmt.Errorf("the guest did not boot within %v", bootTime)) })
		up := false
		took, err = p.run(trial, func(text string) {
			if strings.HasPrefix(text, "lab: up ") {
				up = true
				late.Stop()
			}
			line(text)
		}, "lab.part="+p.name)
		late.Stop()
		cancel(nil)
		if up || again || ctx.Err() != nil {
			return took, err
		}
		p.lab.say("guest %s has not reached /init (%v), once more; the end of its kernel's messages:", p.name, err)
		if err := p.showConsole(4 << 10); err != nil {
			return took, err
		}
	}
}

func (p *part) showConsole(most int64) error {
	p.lab.saying.Lock()
	defer p.lab.saying.Unlock()
	return copyTail(os.Stdout, p.console, most)
}
