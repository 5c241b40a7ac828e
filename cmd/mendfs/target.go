package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/mendfs/mendfs/mount"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
)

// source answers about a mount: the running mount itself, or the files that it
// left in its state directory.
type source interface {
	Status(ctx context.Context) (control.Status, error)
	EachLost(ctx context.Context, q control.LostQuery, each func(ledger.Row) error) error
	Pending(ctx context.Context, path string) ([]control.Pending, error)
	Drop(ctx context.Context, id uint64) error
	Events(ctx context.Context, q control.EventQuery, line func([]byte) error) error
}

// dirFlag is the value of a flag that names a directory.
type dirFlag struct{ dir *string }

func (f dirFlag) String() string { return "" }
func (f dirFlag) Type() string   { return "string" }

// Set refuses the empty name: a script whose variable is not set means some
// directory, not none.
func (f dirFlag) Set(dir string) error {
	if dir == "" {
		return errors.New("empty")
	}
	*f.dir = dir
	return nil
}

func addState(f *pflag.FlagSet, dir *string) {
	f.Var(dirFlag{dir}, "state", "ask the state directory `DIR`")
}

// targetOf is how a shell names the mount, or its state directory if it is not
// mounted, to a verb.
func targetOf(s control.Status) string {
	if s.Running {
		return shellWord(s.Mountpoint)
	}
	return "--state " + shellWord(s.State)
}

// ask calls question with what answers for the target: a path in a running
// mount, or, if state is given, what lies or runs there. rel is the target
// relative to the root of the mount, "." for all of it.
func ask(ctx context.Context, state, target string, question func(src source, rel string) error) error {
	if state == "" {
		if target == "" {
			return &usageError{"neither a path in a mount nor --state is given", "name one of them"}
		}
		running, err := mount.Find(target)
		if err != nil {
			return orState(err)
		}
		return question(running.Dial(), running.Rel)
	}
	offline, err := mount.OpenState(state)
	if errors.Is(err, mount.ErrRunning) {
		if err := answers(ctx, state); err != nil {
			return err
		}
		return askBelow(ctx, control.Dial(state), target, question)
	}
	if err != nil {
		return err
	}
	return errors.Join(askBelow(ctx, offline, target, question), offline.Close())
}

// orState adds to the error for a path that lies in no mount what the verbs
// with --state can do.
func orState(err error) error {
	var refused *mount.Error
	if !errors.As(err, &refused) || refused.Next != mount.MountPath {
		return err
	}
	with := *refused
	with.Next += ", or --state DIR"
	return &with
}

// answers fails if the mount that runs on the state directory says nothing.
func answers(ctx context.Context, state string) error {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	if errors.Is(control.Dial(state).Answers(ctx), context.DeadlineExceeded) {
		return &failure{errors.New("the daemon that runs on " + quote(state) + " does not answer"), "see whether it is stopped: fuser -v " + shellWord(filepath.Join(state, "lock"))}
	}
	return nil // what else is wrong the question tells
}

// statusTime is how long a mount may take to answer about itself.
const statusTime = 10 * time.Second

// statusOf asks the running mount.
func statusOf(ctx context.Context, r mount.Running) (control.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	s, err := r.Dial().Status(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = r.Silent()
	}
	return s, err
}

// askBelow finds out what target is relative to the root of the mount of which
// only the state directory was named.
func askBelow(ctx context.Context, src source, target string, question func(source, string) error) error {
	if !filepath.IsAbs(target) {
		return question(src, filepath.Clean(target))
	}
	status, err := src.Status(ctx)
	if err != nil {
		return err
	}
	for _, root := range []string{status.Mountpoint, status.Backing} {
		rel, err := filepath.Rel(root, target)
		if root != "" && err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return question(src, rel)
		}
	}
	return &usageError{quote(target) + " is not below " + quote(status.Backing), "name a path of that mount, or leave the path out"}
}
