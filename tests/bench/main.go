// Command bench measures how fast a mount is: mendfs beside the bare directory, the
// least that a server can do (floor.go), go-fuse's loopback and bindfs, on tmpfs and
// on ext4, and mendfs with poison beside mendfs without.
//
//	bench [-quick] [-rounds N] [-size BYTES] [-only REGEXP] [-columns REGEXP]
//	      [-backing tmpfs,ext4] [-mendfs BINARY] [-out DIR]
//
// All columns are mounted at once, each over a directory of its own with the same
// content. In each round each cell is measured on each column before the next cell, in an
// order that rotates, so that whatever else the machine does meets all columns alike.
// A ratio is the median of the ratios within the rounds; below 5 % it says nothing.
//
// The load is made by a process of its own (bench load), the CPU time is its and the
// daemon's. "Cold" means that the mount's own page cache is dropped, "warm" that it is
// filled: what lies below is memory in both cases, as persistent memory is. For the bare
// directory they are the same. Cold names mean that no dentries and inodes are cached.
//
// It prints the tables, and leaves bench.txt, bench.json and a plot per backing in DIR. Exit
// status: 0 also when a column can't be mounted, which is said; 1 when a measurement fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "load":
			return loadMain(args[1:])
		case "loopback":
			return loopbackMain(ctx, args[1:])
		case "floor":
			return floorMain(ctx, args[1:])
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	return measure(ctx, o)
}

// options is what the command line asks for.
type options struct {
	rounds   int
	size     int64 // of the file that data cells use
	trees    trees
	only     *regexp.Regexp
	columns  *regexp.Regexp
	backings []string
	mendfs   string
	out      string
}

// trees are the numbers of files of the metadata cells.
type trees struct {
	Find int `json:"find"`
	Tar  int `json:"tar"`
	Git  int `json:"git"`
}

func parse(args []string) (*options, error) {
	var o options
	var only, columns, backings string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := f.Bool("quick", false, "small files, three rounds: to see whether it works")
	f.IntVar(&o.rounds, "rounds", 0, "how often each cell is measured (default 7, quick 3)")
	f.Int64Var(&o.size, "size", 0, "bytes of the file that is read and written (default 128 MiB, quick 16)")
	f.StringVar(&only, "only", "", "measure the cells whose name matches this `REGEXP`")
	f.StringVar(&columns, "columns", "", "measure the columns whose name matches this `REGEXP`, and the bare directory")
	f.StringVar(&backings, "backing", "tmpfs,ext4", "what lies below")
	f.StringVar(&o.mendfs, "mendfs", "bin/mendfs", "the `BINARY` under test")
	f.StringVar(&o.out, "out", "", "leave the results in this `DIR` (default: print only)")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is more than bench takes: see bench -h", f.Arg(0))
	}
	o.fill(*quick)
	if o.size < 16<<20 || o.size%(4<<20) != 0 {
		return nil, fmt.Errorf("-size %d: give at least 16 MiB, in steps of 4 MiB", o.size)
	}
	o.backings = strings.Split(backings, ",")
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	if o.columns, err = regexp.Compile(columns); err != nil {
		return nil, fmt.Errorf("-columns: %w", err)
	}
	return &o, nil
}

// fill sets what was not given.
func (o *options) fill(quick bool) {
	rounds, size := 7, int64(128<<20)
	o.trees = trees{Find: 15000, Tar: 5000, Git: 10000}
	if quick {
		rounds, size = 3, 16<<20
		o.trees = trees{Find: 1500, Tar: 500, Git: 1000}
	}
	if o.rounds <= 0 {
		o.rounds = rounds
	}
	if o.size <= 0 {
		o.size = size
	}
}
