package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	page         = 4096
	damagedSize  = 64 << 20
	overwrites   = 50  // of whole pages, and of parts of others
	mostInjected = 500 // ranges in one command line
	fewRounds    = 3   // of what takes long
	rereads      = 5   // in a round
)

// damages are the numbers of bad pages; the first is the clean file that the others are
// compared with.
var damages = []int{0, 1, 100, 1000, 10000}

// damaged measures what poison costs, and the records of it. All backings are in
// memory; state directories are in memory or on the disk of $TMPDIR.
func (b *bench) damaged(ctx context.Context, t *damageTable) error {
	if !b.columns.MatchString("mendfs") {
		return nil
	}
	var errs []error
	for _, part := range []struct {
		name string
		run  func(context.Context, *damageRun) error
	}{
		{"reads", b.damagedReads}, {"repairs", b.repairs}, {"overwrites", b.wholeOverwrites},
		{"neighbour", b.neighbour}, {"mount", b.mountWithRecords}, {"journal", b.groupCommit},
	} {
		if name := "damaged " + part.name; b.only.MatchString(name) && t.Refused == "" {
			if err := b.damagedPart(ctx, t, part.name, part.run); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// damageRun is where a part of the measurements of damage is made.
type damageRun struct {
	*damageTable
	top    string // a directory below $TMPDIR
	memory string // one on tmpfs
	mounts int    // made so far
}

func (b *bench) damagedPart(ctx context.Context, t *damageTable, name string, run func(context.Context, *damageRun) error) (err error) {
	top := filepath.Join(b.dir, "damaged."+name)
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	back, err := newBacking("tmpfs", top, 16*damagedSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, back.close()) }()
	d := &damageRun{damageTable: t, top: top, memory: back.root}
	var st unix.Statfs_t
	if unix.Statfs(top, &st) == nil {
		t.NoDisk = st.Type == unix.TMPFS_MAGIC
	}
	start := time.Now()
	err = run(ctx, d)
	fmt.Fprintf(os.Stderr, "damaged %s: %.0f s\n", name, time.Since(start).Seconds())
	return err
}

// mounted gives fn a new mount on simulated poison with its state in the directory above.
func (b *bench) mounted(ctx context.Context, d *damageRun, above string, fn func(*column) error) (err error) {
	d.mounts++
	dir := filepath.Join(above, "mount."+strconv.Itoa(d.mounts))
	col := b.simulated(filepath.Join(d.memory, "backing."+strconv.Itoa(d.mounts)))
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(col.backing, 0o755)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, col.unmount(), os.RemoveAll(col.backing), os.RemoveAll(dir)) }()
	if err := col.mount(ctx, dir); err != nil {
		return err
	}
	if d.Refused = col.Refused; d.Refused != "" {
		return nil
	}
	return fn(col)
}

// damagedReads measures a file with simulated poison beside a clean one, in the same mount.
// Each round has a mount of its own: the first read is to be the first.
func (b *bench) damagedReads(ctx context.Context, d *damageRun) error {
	for round := range b.rounds {
		err := b.mounted(ctx, d, d.top, func(col *column) error {
			for i := range damages {
				bad := damages[(i+round)%len(damages)]
				if err := b.damagedFile(ctx, d.damageTable, round, col, bad); err != nil {
					return fmt.Errorf("%d bad pages: %w", bad, err)
				}
			}
			return nil
		})
		if err != nil || d.Refused != "" {
			return err
		}
	}
	return nil
}

func (b *bench) simulated(backing string) *column {
	return &column{Name: "simulated", backing: backing, command: func(backing, at, state string) []string {
		return []string{b.mendfs, "mount", "--simulate", "dax", "--state", state, backing, at}
	}}
}

// damagedFile measures all that is to be measured on one file.
func (b *bench) damagedFile(ctx context.Context, t *damageTable, round int, col *column, bad int) error {
	dir := filepath.Join(col.at, strconv.Itoa(bad))
	file := dataFile(dir, 1, 0)
	if err := errors.Join(os.Mkdir(dir, 0o755), fillFile(file, damagedSize)); err != nil {
		return err
	}
	if err := b.inject(ctx, file, bad); err != nil {
		return err
	}
	read := load{Op: "read", Dir: dir, Jobs: 1, Size: damagedSize, Block: 128 << 10, Count: damagedSize >> 17, Cache: cold}
	steps := []struct {
		name string
		load load
	}{{"first read", read}, {"re-read", read}}
	if bad == 0 || bad >= 2*overwrites {
		whole, part := targets(bad)
		steps = append(steps, []struct {
			name string
			load load
		}{
			{"overwrite whole pages", load{Op: "write", Dir: dir, Jobs: 1, Size: damagedSize, Block: page, Count: len(whole), At: whole}},
			{"overwrite parts of pages", load{Op: "write", Dir: dir, Jobs: 1, Size: damagedSize, Block: 512, Count: len(part), At: part}},
		}...)
	}
	for _, s := range steps {
		again := 1
		if s.name == "re-read" {
			time.Sleep(2 * time.Second) // what the first read has found is on disk
			again = rereads
		}
		d, err := b.median(ctx, s.load, col, again)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		t.add(s.name, bad, round, d)
	}
	return os.RemoveAll(dir)
}

// median is the median of a load that is done so often, by its time.
func (b *bench) median(ctx context.Context, l load, col *column, times int) (*done, error) {
	var all []*done
	for range times {
		d, err := b.load(ctx, l, col)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(x, y *done) int { return cmp.Compare(x.Seconds, y.Seconds) })
	return all[times/2], nil
}

// badPage is the offset of the i-th of n bad pages: they are spread evenly.
func badPage(i, n int) int64 {
	return int64(i) * (damagedSize / page / int64(n)) * page
}

// targets are offsets in bad pages, or in as many pages of the clean file.
func targets(bad int) (whole, part []int64) {
	if bad == 0 {
		bad = 2 * overwrites
	}
	for i := range overwrites {
		whole = append(whole, badPage(2*i, bad))
		part = append(part, badPage(2*i+1, bad)+1024)
	}
	return whole, part
}

// inject poisons a line in each of n pages of a file of damagedSize.
func (b *bench) inject(ctx context.Context, file string, n int) error {
	var at []int64
	for i := range n {
		at = append(at, badPage(i, n))
	}
	defer settled()
	return b.injectLines(ctx, file, at)
}

// injectLines poisons a line of each of the pages.
func (b *bench) injectLines(ctx context.Context, file string, pages []int64) error {
	for some := range slices.Chunk(pages, mostInjected) {
		args := []string{b.mendfs, "inject", file}
		for _, off := range some {
			args = append(args, "--range", fmt.Sprintf("%d+64", off+2048))
		}
		if err := errors.Join(run("", args...), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// settled waits until the injections are in force: caches are dropped after the answer.
func settled() { time.Sleep(100 * time.Millisecond) }
