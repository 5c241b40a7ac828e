package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

const (
	manyRecords    = 1_000_000
	filesOfRecords = 1000
)

// mountWithRecords measures how long a mount takes, until it answers, with a
// million lost ranges in its ledger, against none.
func (b *bench) mountWithRecords(ctx context.Context, d *damageRun) error {
	empty, full := b.simulated(filepath.Join(d.memory, "empty")), b.simulated(filepath.Join(d.memory, "full"))
	empty.Name, full.Name = "empty", "full"
	if err := errors.Join(os.Mkdir(empty.backing, 0o755), os.Mkdir(full.backing, 0o755)); err != nil {
		return err
	}
	if _, err := b.timedMount(ctx, empty, d.top); err != nil { // the first makes the state directory
		return err
	}
	if _, err := b.timedMount(ctx, full, d.top); err != nil {
		return err
	}
	if d.Refused = full.Refused; d.Refused != "" {
		return nil
	}
	if err := addRecords(filepath.Join(d.top, "state.full"), full.backing); err != nil {
		return fmt.Errorf("making the records: %w", err)
	}
	for round := range min(b.rounds, fewRounds) {
		base, err := b.timedMount(ctx, empty, d.top)
		if err != nil {
			return err
		}
		took, err := b.timedMount(ctx, full, d.top)
		if err != nil {
			return err
		}
		d.cost(fmt.Sprintf("mount with %d records", manyRecords), "s", "with none", round, took, base)
	}
	return nil
}

// timedMount mounts and unmounts; the time is that of mounting.
func (b *bench) timedMount(ctx context.Context, c *column, dir string) (d *done, err error) {
	start := time.Now()
	if err := c.mount(ctx, dir); err != nil {
		return nil, errors.Join(err, c.unmount())
	}
	d = &done{Seconds: time.Since(start).Seconds(), Ops: 1}
	return d, errors.Join(c.unmount(), os.Remove(c.at))
}

// addRecords puts a million lost lines of a thousand files into the ledger of
// an existing state directory.
func addRecords(state, backing string) (err error) {
	text, err := os.ReadFile(filepath.Join(state, "meta.json"))
	if err != nil {
		return err
	}
	var meta struct {
		FS   string
		Root fileid.ID
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		return err
	}
	l, err := ledger.Open(filepath.Join(state, "ledger.db"), meta.FS, meta.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for i := range filesOfRecords {
		if err := addFile(l, backing, fmt.Sprintf("file-%d", i)); err != nil {
			return err
		}
		if i%20 == 19 { // as much as one transaction takes well
			if err := l.Flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// addFile makes a file and records a line of each of its pages as lost.
func addFile(l *ledger.Ledger, backing, name string) error {
	const rows = manyRecords / filesOfRecords
	f, err := os.Create(filepath.Join(backing, name))
	if err != nil {
		return err
	}
	id, err := fileid.Of(int(f.Fd()))
	if err := errors.Join(err, f.Truncate(rows*page), f.Close()); err != nil {
		return err
	}
	var c ledger.Change
	for i := range int64(rows) {
		c.Lost = append(c.Lost, ledger.Loss{
			File: id, Path: name, Range: ranges.Range{Off: i*page + 2048, Len: ranges.LineSize},
			Cause: "eio", Source: "simulated", Granularity: ranges.LineSize,
		})
	}
	return l.Record(c)
}

// groupCommit measures a repair's share of the journal: an intent with an image,
// durable, and its close.
func (b *bench) groupCommit(ctx context.Context, d *damageRun) error {
	for _, home := range d.homes() {
		for _, writers := range []int{1, manyWriters} {
			for round := range min(b.rounds, fewRounds) {
				path := filepath.Join(home.dir, fmt.Sprintf("journal.%d.%d", writers, round))
				took, err := commits(ctx, path, writers, time.Second)
				if err != nil {
					return err
				}
				d.cost(fmt.Sprintf("intents of the journal, writers: %d, state %s", writers, home.name), "intents/s", "", round, took, nil)
			}
		}
	}
	return nil
}

// commits begins and closes intents for as long as it is told to.
func commits(ctx context.Context, path string, writers int, during time.Duration) (_ *done, err error) {
	j, err := journal.Open(path, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.Shutdown(), os.Remove(path)) }()
	ctx, stop := context.WithTimeout(ctx, during)
	defer stop()
	var all sync.WaitGroup
	var n atomic.Int64
	errs := make([]error, writers)
	start := time.Now()
	for i := range writers {
		all.Go(func() { // ends with the time, or with the run
			for ctx.Err() == nil && errs[i] == nil {
				in := &journal.Intent{
					FS: "bench", File: fileid.ID{Ino: uint64(i) + 1}, Path: "dir/file",
					Range: ranges.Page(int64(i) * page), Size: 1 << 30, End: 1 << 30, Image: make([]byte, page),
				}
				errs[i] = errors.Join(j.Begin(in), j.Close(in.ID))
				n.Add(1)
			}
		})
	}
	all.Wait()
	return &done{Seconds: time.Since(start).Seconds(), Ops: int(n.Load())}, errors.Join(errs...)
}
