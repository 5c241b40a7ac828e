package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/recovery"
)

type mountOptions struct {
	mount.Options
	daemon bool
	fake   bool     // check, and mount nothing; for mount -f
	lists  []string // each -o as given
}

func newMount() *cobra.Command {
	var o mountOptions
	cmd := &cobra.Command{
		Use:   "mount [flags] BACKING [MOUNTPOINT]",
		Short: "mount a directory with protection against memory poison",
		Long: `mount serves BACKING at MOUNTPOINT, or over BACKING itself if there is no MOUNTPOINT.
It prints one line when it is ready, stays in the foreground, and unmounts and ends
at SIGINT or SIGTERM, or by itself after 'mendfs umount'. If it is in use at the signal, a mount
at a MOUNTPOINT is detached (umount -l) and served until its last user is gone; one that covers
BACKING stays where it is, is served, says so, and is unmounted as soon as it is idle. A second
signal ends the process at once, and leaves a dead mount.

Lost bytes read as zero and are in the ledger. Programs that have checksums or
replicas of their own are better served by --semantics strict, where they get EIO.

With --protect rw and known the kernel serves a part by itself, at the speed of the medium
and unprotected: mappings (rw: SIGBUS over poison), or whole files as long as no poison is known
in them (known: the first touch of new poison is EIO or SIGBUS). For root, on Linux 6.9 or later.

Exit status: 0 unmounted, 8 it did not work, 16 wrong usage, 32 interrupted twice.`,
		Example: `  mendfs mount /srv/db
  mendfs mount --daemon --semantics strict /mnt/pmem /srv/db
  mendfs mount --simulate dax /tmp/scratch /tmp/mnt`,
		Args: takes(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Backing = args[0]
			if len(args) == 2 {
				if o.Mountpoint = args[1]; args[1] == "" {
					return &usageError{"the MOUNTPOINT is empty", "name a directory, or leave it out to mount over BACKING itself"}
				}
			}
			for _, name := range []string{"state", "semantics", "simulate", "protect", "repair", "event-log"} {
				if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
					return &usageError{"--" + name + " is empty", "give it a value, or leave it out"}
				}
			}
			if o.Breaker == 0 {
				return &usageError{"--breaker 0 would give up nothing that no list names", "give a number of pages, from 1; --semantics strict gives nothing up"}
			}
			return runMount(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.daemon, "daemon", false, "return when the mount is ready, and serve in the background")
	f.BoolVar(&o.fake, "fake", false, "check what can be checked, and mount nothing")
	f.Lookup("fake").Hidden = true // for the mount helper
	f.StringVar(&o.State, "state", "", "state `DIR`: journal, ledger, events (default: /var/lib/mendfs/NAME, or $XDG_STATE_HOME/mendfs/NAME)")
	f.StringVar(&o.Semantics, "semantics", "recover", "what programs see of poison, by `NAME`: recover or strict")
	f.StringVar(&o.Simulate, "simulate", "", "simulate poison as this `PROFILE` of kernel and memory does: dax, dax-5.18, line")
	f.StringVar(&o.Protect, "protect", "full", "what is protected, by `MODE`: full (all I/O), rw (not mappings), known (files whose poison is known)")
	f.StringVar(&o.Repair, "repair", "on-write", "`TIME` when poison is cleared: on-write (when its page is overwritten), eager (as soon as it is known)")
	f.BoolVar(&o.VerifyWrites, "verify-writes", false, "read back what programs write, and repair poison under it that nobody knew of; costs a read for each write")
	f.IntVar(&o.Breaker, "breaker", recovery.DefaultBreaker, "give up at most `N` pages within 10 seconds that no list names; errors beyond that are passed to programs")
	f.BoolVar(&o.AllowOther, "allow-other", false, "let other users in, as far as the file modes do")
	f.BoolVar(&o.ReadOnly, "read-only", false, "mount read-only; repairs nothing")
	f.BoolVar(&o.Force, "force", false, "do what is refused because it is seldom wanted: --allow-other by an ordinary user, to whom all new files would belong")
	f.StringArrayVarP(&o.lists, "options", "o", nil, "mount options as `opt,opt`: ro, allow_other, nosuid, nodev, noexec, noatime, fsname=, ...")
	f.StringVar(&o.EventLog, "event-log", "", "write the events to this `FILE` too")
	return cmd
}

func runMount(ctx context.Context, o mountOptions, stdout, stderr io.Writer) error {
	for _, list := range o.lists {
		o.MountOpts = append(o.MountOpts, strings.Split(list, ",")...)
	}
	if o.fake {
		return mount.Check(o.Options)
	}
	o.Confine = true // this process does nothing else
	if !o.daemon {
		o.Stderr = stderr
		return serve(ctx, o.Options, func(m *mount.Mount) error {
			_, err := fmt.Fprintln(stdout, m.Ready())
			return err
		})
	}
	if daemon := mount.Background(); daemon != nil {
		o.Stderr = daemon
		return serveDaemon(ctx, o.Options, daemon)
	}
	ready, err := mount.Daemonize(os.Args[1:], stderr)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, ready)
	return err
}

// serveDaemon tells the waiting parent the outcome, whatever it is.
func serveDaemon(ctx context.Context, o mount.Options, daemon *mount.Daemon) error {
	waiting := true
	err := serve(ctx, o, func(m *mount.Mount) error {
		waiting = false
		return daemon.Ready(m)
	})
	if err != nil && waiting {
		if told := daemon.Failed(err); told != nil {
			fmt.Fprintf(daemon, "mendfs mount: telling the caller: %s\n", oneLine(told))
		}
	}
	return err
}

// gcPercent is a quarter of Go's default: the clean path makes no garbage, so it
// costs nothing there, and in a storm of poison the daemon takes less memory
// (docs/speed.md).
const gcPercent = 25

// serve mounts, says so, and returns when the mount is gone: unmounted from
// outside or because ctx ended.
func serve(ctx context.Context, o mount.Options, ready func(*mount.Mount) error) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	m, err := mount.New(o)
	if err != nil {
		return err
	}
	detach := func() {
		if err := m.Unmount(); err != nil {
			fmt.Fprintf(o.Stderr, "mendfs mount: %s\n", oneLine(err))
		}
	}
	if err := ready(m); err != nil {
		detach()
		if ended := m.Wait(); ended != nil {
			fmt.Fprintf(o.Stderr, "mendfs mount: %s\n", oneLine(ended))
		}
		return fmt.Errorf("saying that the mount is ready: %w", err)
	}
	debug.FreeOSMemory() // what reading the state directory has left; nobody waits for it any more
	stop := context.AfterFunc(ctx, detach)
	defer stop()
	return m.Wait()
}
