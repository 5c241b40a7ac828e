package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	page         = 4096
	damagedSize  = 64 << 20
	overwrites   = 50  // of whole pages, and of parts of others
	mostInjected = 500 // ranges in one command line
)

// damages are the numbers of bad pages; the first is the clean file that the others are
// compared with.
var damages = []int{0, 1, 100, 10000}

// damaged measures a file with simulated poison beside a clean one, in the same mount.
// Each round has a mount of its own: the first read is to be the first.
func (b *bench) damaged(ctx context.Context, t *damageTable) (err error) {
	if !b.only.MatchString("damaged") || !b.columns.MatchString("mendfs") {
		return nil
	}
	top := filepath.Join(b.dir, "damaged")
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	back, err := newBacking("tmpfs", top, 4*damagedSize)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, back.close()) }()
	for round := range b.rounds {
		dir := filepath.Join(top, strconv.Itoa(round))
		col := b.simulated(filepath.Join(back.root, strconv.Itoa(round)))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(col.backing, 0o755), b.damagedRound(ctx, t, round, col, dir)); err != nil {
			return err
		}
		if t.Refused != "" {
			return nil
		}
		fmt.Fprintf(os.Stderr, "damaged: round %d of %d\n", round+1, b.rounds)
	}
	return nil
}

func (b *bench) simulated(backing string) *column {
	return &column{Name: "simulated", backing: backing, command: func(backing, at, state string) []string {
		return []string{b.mendfs, "mount", "--simulate", "dax", "--state", state, backing, at}
	}}
}

func (b *bench) damagedRound(ctx context.Context, t *damageTable, round int, col *column, dir string) (err error) {
	defer func() { err = errors.Join(err, col.unmount(), os.RemoveAll(col.backing)) }()
	if err := col.mount(ctx, dir); err != nil {
		return err
	}
	if t.Refused = col.Refused; t.Refused != "" {
		return nil
	}
	for i := range damages {
		bad := damages[(i+round)%len(damages)]
		if err := b.damagedFile(ctx, t, round, col, bad); err != nil {
			return fmt.Errorf("%d bad pages: %w", bad, err)
		}
	}
	return nil
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
		d, err := b.load(ctx, s.load, col)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		t.add(s.name, bad, round, d)
	}
	return os.RemoveAll(dir)
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

// inject poisons a line in each of n pages.
func (b *bench) inject(ctx context.Context, file string, n int) error {
	for i := 0; i < n; {
		args := []string{b.mendfs, "inject", file}
		for ; i < n && len(args) < 2*mostInjected; i++ {
			args = append(args, "--range", fmt.Sprintf("%d+64", badPage(i, n)+2048))
		}
		if err := run("", args...); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	time.Sleep(100 * time.Millisecond) // caches are dropped after the answer
	return nil
}
