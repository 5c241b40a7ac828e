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
	"os"
	"os/signal"
	"syscall"

	"github.com/mendfs/mendfs/mount"
)

func main() {
	if u := mount.UnmountsFor(); u != nil {
		os.Exit(exitCode(u.Serve()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	run, cancelled := execute, exitCancelled
	if isHelper(os.Args[0]) {
		run, cancelled = runHelper, mountCancelled
	}
	go interrupt(signals, cancel, cancelled)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// interrupt cancels the running verb at the first signal, so that it can put
// things in order, and gives up at the second. It ends with the process.
func interrupt(signals <-chan os.Signal, cancel context.CancelFunc, code int) {
	<-signals
	cancel()
	<-signals
	os.Exit(code)
}
