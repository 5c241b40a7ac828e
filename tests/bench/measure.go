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

// bench is a run.
type bench struct {
	*options
	self   string // this program
	dir    string // for all that is made
	shelf  string
	failed []error // measurements that did not work
}

// measure does all, prints it and leaves it in o.out.
func measure(ctx context.Context, o *options) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if o.mendfs, err = filepath.Abs(o.mendfs); err != nil {
		return err
	}
	if _, err := os.Stat(o.mendfs); err != nil {
		return fmt.Errorf("the binary under test (make build): %w", err)
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{options: o, self: self, dir: dir, shelf: filepath.Join(dir, "shelf")}
	if err := os.Mkdir(b.shelf, 0o755); err != nil {
		return err
	}
	r, err := b.all(ctx)
	if err != nil {
		return err
	}
	return errors.Join(r.write(os.Stdout, o.out), errors.Join(b.failed...))
}

// all measures whatever can be measured.
func (b *bench) all(ctx context.Context) (*report, error) {
	r := newReport(b.options)
	if err := stock(b.shelf, b.trees); err != nil {
		return nil, err
	}
	for _, kind := range b.backings {
		t, err := b.clean(ctx, kind)
		if err != nil {
			b.failed = append(b.failed, fmt.Errorf("on %s: %w", kind, err))
		}
		r.Tables = append(r.Tables, t)
	}
	if err := b.damaged(ctx, r.Damaged); err != nil {
		b.failed = append(b.failed, fmt.Errorf("damaged files: %w", err))
	}
	r.Seconds = time.Since(r.Time).Seconds()
	return r, nil
}

// chosen are the cells and columns that were asked for.
func (b *bench) chosen() (some []cell, cols []*column) {
	for _, c := range cells() {
		if b.only.MatchString(c.Name) {
			some = append(some, c)
		}
	}
	for _, c := range columns(b.self, b.mendfs) {
		if c.command == nil || b.columns.MatchString(c.Name) {
			cols = append(cols, c)
		}
	}
	return some, cols
}

// clean measures the clean cells on one backing.
func (b *bench) clean(ctx context.Context, kind string) (t *table, err error) {
	some, cols := b.chosen()
	t = newTable(kind, some, cols)
	if len(some) == 0 {
		return t, nil
	}
	each := 2*b.size + int64(b.trees.Find+b.trees.Git+2*b.trees.Tar)*16<<10
	back, err := newBacking(kind, b.dir, int64(len(cols))*each+256<<20)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, back.close()) }()
	dir := filepath.Join(b.dir, "mounts."+kind)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return t, err
	}
	for _, c := range cols {
		c.backing = filepath.Join(back.root, c.Name)
		if err := errors.Join(os.Mkdir(c.backing, 0o755), fill(c.backing, b.shelf, b.options)); err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, c.unmount()) }()
		if err := c.mount(ctx, dir); err != nil {
			return t, err
		}
		if c.Name == "mendfs" && c.Refused != "" {
			return t, fmt.Errorf("what is to be measured can't be mounted: %s", c.Refused)
		}
	}
	return t, b.measure(ctx, t, back, some, cols)
}

func (b *bench) measure(ctx context.Context, t *table, back *backing, some []cell, cols []*column) error {
	for round := range b.rounds {
		for i, cell := range some {
			for k := range cols {
				if err := ctx.Err(); err != nil {
					return err
				}
				col := cols[(k+round+i)%len(cols)]
				if col.Refused != "" || col.dataOnly && !cell.data {
					continue
				}
				s, err := b.sample(ctx, cell, col)
				if err == nil {
					err = back.settle()
				}
				if err != nil {
					b.failed = append(b.failed, fmt.Errorf("%s: %s on %s: %w", back.name, cell.Name, col.Name, err))
				}
				t.add(cell.Name, col.Name, round, s)
			}
		}
		fmt.Fprintf(os.Stderr, "%s: round %d of %d\n", back.name, round+1, b.rounds)
	}
	return nil
}

func (b *bench) sample(ctx context.Context, c cell, col *column) (*done, error) {
	on := &content{dir: col.at, shelf: b.shelf, cold: col.command != nil, size: b.size}
	if c.ready != nil {
		if err := c.ready(on); err != nil {
			return nil, err
		}
	}
	if c.names == cold {
		if err := dropNames(); err != nil {
			return nil, err
		}
	}
	return b.load(ctx, c.load(on), col)
}

// load does a load in a process of its own.
func (b *bench) load(ctx context.Context, l load, col *column) (*done, error) {
	l.Pids = col.pids
	spec, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, b.self, "load", string(spec)).Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return nil, errors.New(firstLine(string(exit.Stderr)))
		}
		return nil, err
	}
	var d done
	return &d, json.Unmarshal(out, &d)
}
