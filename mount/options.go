package mount

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mendfs/mendfs/fs"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/media/sim"
)

// Options is what a mount is asked to be.
type Options struct {
	Backing    string // the directory whose files are protected
	Mountpoint string // "" over-mounts Backing itself
	State      string // the state directory; "" for the default name
	Semantics  string // recover (also ""), strict
	Simulate   string // "", dax, dax-5.18, line
	AllowOther bool
	Protect    string // full (also ""), rw, known
	ReadOnly   bool

	Repair       string // on-write (also ""), eager
	VerifyWrites bool   // read back what is written
	Breaker      int    // recovery.Config.Breaker

	MountOpts []string // what -o was given, split at commas
	EventLog  string   // a file that gets a copy of the event stream; "" for none
	Force     bool     // do what is refused because it is seldom wanted

	// Confine has New restrict this process for good to what serving needs:
	// for programs that do nothing else, and ask UnmountsFor first.
	Confine bool

	Stderr io.Writer // warnings and the human text of events; nil for none
}

// Error is a refusal or a failure, with the exit code that it stands for.
type Error = control.Error

func usage(next, format string, args ...any) *Error {
	return &Error{Exit: control.ExitUsage, Msg: fmt.Sprintf(format, args...), Next: next}
}

func failed(err error, next, format string, args ...any) *Error {
	return &Error{Exit: control.ExitOperational, Msg: fmt.Sprintf(format, args...), Next: next, Err: err}
}

// config is Options after all checks that need no look at the system.
type config struct {
	Options
	flags     mountFlags
	semantics recovery.Semantics
	protect   fs.Protect
	eager     bool // repair poison as soon as it is known
}

// parse checks the options and makes paths absolute.
func (o Options) parse() (*config, error) {
	c := &config{Options: o}
	var err error
	if c.flags, err = parseMountOpts(o.MountOpts); err != nil {
		return nil, err
	}
	c.ReadOnly = o.ReadOnly || c.flags.readOnly
	c.AllowOther = o.AllowOther || c.flags.allowOther
	if c.Stderr == nil {
		c.Stderr = io.Discard
	}
	if o.Simulate != "" && !slices.Contains(sim.Profiles(), o.Simulate) {
		return nil, usage("use one of "+strings.Join(sim.Profiles(), ", "), "no simulated medium is called %q", o.Simulate)
	}
	if c.semantics, err = recovery.SemanticsByName(cmp.Or(o.Semantics, "recover")); err != nil {
		return nil, usage("choose one of them", "%v", err)
	}
	if c.protect, err = fs.ProtectByName(cmp.Or(o.Protect, "full")); err != nil {
		return nil, usage("choose one of them", "%v", err)
	}
	if c.Breaker < 0 {
		return nil, usage("give a number of pages, from 1", "--breaker %d is no number of pages", c.Breaker)
	}
	if err := c.parseRepair(); err != nil {
		return nil, err
	}
	if c.protect != fs.ProtectFull && (os.Geteuid() != 0 || !privileged()) {
		return nil, usage("leave it out, or mount as root", "--protect %v has the kernel read and write files by itself, which takes CAP_SYS_ADMIN", c.protect)
	}
	if o.Backing == "" {
		return nil, usage("mendfs mount BACKING [MOUNTPOINT]", "no backing directory given")
	}
	if os.Geteuid() != 0 && slices.ContainsFunc(c.flags.words, func(w string) bool { return w == "suid" || w == "dev" }) {
		return nil, usage("leave them out, or mount as root", "the mount options suid and dev are for root")
	}
	if c.AllowOther && os.Geteuid() != 0 && !c.Force {
		return nil, usage("mount as root, or add --force if that is what you want", "--allow-other by an ordinary user: what others make in the mount would belong to you")
	}
	for _, path := range []*string{&c.Backing, &c.Mountpoint, &c.State, &c.EventLog} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, failed(err, "change to a directory that exists", "the working directory is gone")
		}
	}
	return c, nil
}

func (c *config) parseRepair() error {
	switch c.Repair {
	case "", "on-write":
		return nil
	case "eager":
	default:
		return usage("choose one of them", "no time of repair is called %q; there are: on-write, eager", c.Repair)
	}
	switch {
	case !c.semantics.Recover:
		return usage("leave one of both out", "semantics %s has programs see poison, and --repair eager makes it zeros before they do", c.semantics.Name)
	case c.ReadOnly:
		return usage("leave one of both out", "a read-only mount repairs nothing, and --repair eager asks for it")
	}
	c.eager = true
	return nil
}

func (c *config) repair() string {
	if c.eager {
		return "eager"
	}
	return "on-write"
}

func (c *config) warn(format string, args ...any) {
	fmt.Fprintf(c.Stderr, "mendfs: %s\n", control.Printable(fmt.Sprintf(format, args...)))
}
