// Command mendfs is a filesystem that reads around memory poison, makes
// damaged pages usable again when they are overwritten, and keeps a ledger of
// what was lost.
//
// This package is the command line and nothing else: one file per verb, each
// with a run function that takes a context, its options and two writers, and
// returns an error. Standard output is data, standard error is talk. What the
// errors become is in exit.go.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mendfs/mendfs/mount"
)

func main() {
	// Of the main thread, which ps and pgrep show: a daemon was started as /proc/self/exe.
	_ = os.WriteFile("/proc/self/comm", []byte("mendfs"), 0) // only a name; what needs /proc says so
	if u := mount.UnmountsFor(); u != nil {
		os.Exit(exitCode(u.Serve()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	run, cancelled := execute, exitCancelled
	tidies := len(os.Args) > 1 && (os.Args[1] == "mount" || os.Args[1] == "demo")
	if isHelper(os.Args[0]) {
		run, cancelled, tidies = runHelper, mountCancelled, true
	}
	go interrupt(signals, cancel, cancelled, tidies)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// grace is how long a verb that only asks may take to end when it is told to.
const grace = time.Second

// interrupt cancels the running verb at the first signal. One that mounts puts
// things in order then, and is given up at the second signal; of the others
// nothing can hold the end up, a system call that hangs neither. It ends with
// the process.
func interrupt(signals <-chan os.Signal, cancel context.CancelFunc, code int, tidies bool) {
	<-signals
	cancel()
	var late <-chan time.Time
	if !tidies {
		late = time.After(grace)
	}
	select {
	case <-signals:
	case <-late:
		fmt.Fprintln(os.Stderr, "mendfs: interrupted")
	}
	os.Exit(code)
}
