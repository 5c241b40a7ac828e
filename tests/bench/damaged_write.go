package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// home is where a state directory is put. In memory, the engine's own work is
// measured; on a disk also what it waits for.
type home struct{ name, dir string }

func (d *damageRun) homes() []home {
	homes := []home{{"in memory", d.memory}}
	if !d.NoDisk {
		homes = append(homes, home{"on disk", d.top})
	}
	return homes
}

// manyWriters is enough for repairs to share what they wait for.
const manyWriters = 64

// repairs measures writes to parts of bad pages, each by a repair of its own,
// against the same writes to clean pages. Each writer has its own file: within a
// file the kernel sends one write at a time.
func (b *bench) repairs(ctx context.Context, d *damageRun) error {
	for _, home := range d.homes() {
		for _, writers := range []int{1, manyWriters} {
			for round := range min(b.rounds, fewRounds) {
				err := b.mounted(ctx, d, home.dir, func(col *column) error {
					bad, err := b.partWrites(ctx, col, "bad", writers)
					if err != nil {
						return err
					}
					clean, err := b.partWrites(ctx, col, "clean", writers)
					if err != nil {
						return err
					}
					what := fmt.Sprintf("512 B into bad pages, writers: %d, state %s", writers, home.name)
					d.cost(what, "pages/s", "into clean pages", round, bad, clean)
					return nil
				})
				if err != nil || d.Refused != "" {
					return err
				}
			}
		}
	}
	return nil
}

// partWrites writes 512 bytes into 256 pages of one file, or 16 of each of many,
// all of them with a bad line if the kind is bad.
func (b *bench) partWrites(ctx context.Context, col *column, kind string, writers int) (*done, error) {
	pages := 256
	if writers > 1 {
		pages = 16
	}
	const apart = 4 // pages
	dir := filepath.Join(col.at, kind)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	var bad, at []int64
	for i := range pages {
		bad = append(bad, int64(i*apart*page))
		at = append(at, int64(i*apart*page)+1024)
	}
	size := int64(pages * apart * page)
	for i := range writers {
		file := dataFile(dir, writers, i)
		if err := fillFile(file, max(size, 1<<20)); err != nil {
			return nil, err
		}
		if kind == "bad" {
			if err := b.injectLines(ctx, file, bad); err != nil {
				return nil, err
			}
		}
	}
	settled()
	l := load{Op: "write", Dir: dir, Jobs: writers, Size: size * int64(writers), Block: 512, Count: pages * writers, At: at}
	return b.load(ctx, l, col)
}

// wholeOverwrites measures how fast a file that is bad from end to end is written
// anew, as when it is restored from a copy, against a clean file. Where nobody has
// read it, the daemon does not know of the poison, and the medium clears it.
func (b *bench) wholeOverwrites(ctx context.Context, d *damageRun) error {
	for _, home := range d.homes() {
		for round := range min(b.rounds, fewRounds) {
			err := b.mounted(ctx, d, home.dir, func(col *column) error {
				for _, block := range []int{1 << 20, 4 << 10} {
					l := load{Op: "write", Dir: filepath.Join(col.at, short(block)), Jobs: 1, Size: damagedSize, Block: block, Count: min(damagedSize/block, 2048)}
					if err := b.overwritesOf(ctx, d, col, l, round, home.name); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil || d.Refused != "" {
				return err
			}
		}
	}
	return nil
}

// overwritesOf does l on a clean file, on a bad one, and on a bad one that was read.
func (b *bench) overwritesOf(ctx context.Context, d *damageRun, col *column, l load, round int, home string) error {
	if err := newData(l); err != nil {
		return err
	}
	clean, err := b.load(ctx, l, col)
	if err != nil {
		return err
	}
	for _, before := range []string{"not read", "read"} {
		if err := b.injectAll(l); err != nil {
			return err
		}
		if before == "read" {
			read := load{Op: "read", Dir: l.Dir, Jobs: 1, Size: l.Size, Block: 1 << 20, Count: int(l.Size >> 20), Cache: cold}
			if _, err := b.load(ctx, read, col); err != nil {
				return err
			}
		}
		took, err := b.load(ctx, l, col)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("overwrite of a file all bad, %s before, by %s, state %s", before, short(l.Block), home)
		d.cost(what, "MiB/s", "a clean file", round, took, clean)
	}
	return nil
}

// injectAll poisons the whole of the files that a load uses.
func (b *bench) injectAll(l load) error {
	defer settled()
	for i := range l.Jobs {
		file := dataFile(l.Dir, l.Jobs, i)
		if err := run("", b.mendfs, "inject", file, "--range", fmt.Sprintf("0+%d", l.Size/int64(l.Jobs))); err != nil {
			return err
		}
	}
	return nil
}

// newData makes the files that a load uses.
func newData(l load) error {
	errs := []error{os.Mkdir(l.Dir, 0o755)}
	for i := range l.Jobs {
		errs = append(errs, fillFile(dataFile(l.Dir, l.Jobs, i), l.Size/int64(l.Jobs)))
	}
	return errors.Join(errs...)
}
