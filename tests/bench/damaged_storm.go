package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	stormReaders = 10
	stormFile    = 16 << 20 // of each
)

// neighbour measures reads of a clean file while ten others read files in which
// every page is bad, for the first time; against the same while ten others read
// clean files, since readers of any kind need the processors. State is in memory:
// a disk would slow the storm, not the neighbour.
func (b *bench) neighbour(ctx context.Context, d *damageRun) error {
	for _, l := range []load{{Block: 128 << 10, Count: damagedSize >> 17}, {Block: page, Count: 2048, Random: true}} {
		kind := "sequential"
		if l.Random {
			kind = "random"
		}
		l.Op, l.Jobs, l.Size, l.Cache = "read", 1, damagedSize, cold
		for round := range min(b.rounds, fewRounds) {
			err := b.mounted(ctx, d, d.memory, func(col *column) error {
				return b.neighbourRound(ctx, d, col, kind, l, round)
			})
			if err != nil || d.Refused != "" {
				return err
			}
		}
	}
	return nil
}

func (b *bench) neighbourRound(ctx context.Context, d *damageRun, col *column, kind string, l load, round int) error {
	l.Dir = filepath.Join(col.at, "neighbour")
	others := load{Op: "read", Jobs: stormReaders, Size: stormReaders * stormFile, Block: 128 << 10, Cache: cold}
	others.Count = int(others.Size) / others.Block
	clean, storm := others, others
	clean.Dir, clean.Loop = filepath.Join(col.at, "clean"), true
	storm.Dir = filepath.Join(col.at, "storm")
	if err := errors.Join(newData(l), newData(clean), newData(storm), b.injectEveryPage(ctx, storm)); err != nil {
		return err
	}
	alone, err := b.load(ctx, l, col)
	if err != nil {
		return err
	}
	base, err := b.beside(ctx, clean, l, col)
	if err != nil {
		return fmt.Errorf("beside readers of clean files: %w", err)
	}
	took, err := b.beside(ctx, storm, l, col)
	if err != nil {
		return fmt.Errorf("beside the storm: %w", err)
	}
	d.cost(fmt.Sprintf("%s reads of a clean file beside ten readers of clean ones", kind), "MiB/s", "alone", round, base, alone)
	d.cost(fmt.Sprintf("%s reads of a clean file beside ten first readers of bad ones", kind), "MiB/s", "beside readers of clean ones", round, took, base)
	return nil
}

// injectEveryPage poisons a line of every page of the files that a load uses.
func (b *bench) injectEveryPage(ctx context.Context, l load) error {
	defer settled()
	size := l.Size / int64(l.Jobs)
	pages := make([]int64, size/page)
	for i := range pages {
		pages[i] = int64(i) * page
	}
	for i := range l.Jobs {
		if err := b.injectLines(ctx, dataFile(l.Dir, l.Jobs, i), pages); err != nil {
			return err
		}
	}
	return nil
}

// beside does l while others goes on, which must last longer.
func (b *bench) beside(ctx context.Context, others, l load, col *column) (d *done, err error) {
	spec, err := json.Marshal(others)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.self, "load", string(spec))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { // ends with the process, which is killed below
		_ = cmd.Wait() // by a signal, as a rule
		close(ended)
	}()
	time.Sleep(50 * time.Millisecond) // it opens its files
	d, err = b.load(ctx, l, col)
	select {
	case <-ended:
		err = errors.Join(err, errors.New("what was to go on ended too early"))
	default:
		_ = cmd.Process.Kill() // it may just have ended
		<-ended
	}
	return d, err
}
