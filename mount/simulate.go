package mount

import (
	"context"
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Inject poisons files, and makes the kernel forget their cached pages unless
// it shall keep them as it would with real memory. It happens wholly or not at
// all.
func (b backend) Inject(_ context.Context, r control.InjectRequest) ([]control.Injection, error) {
	if err := b.mayInject(r); err != nil {
		return nil, err
	}
	inject := b.injectRanges
	if r.Random > 0 {
		inject = b.injectRandom
	}
	done, err := inject(r)
	if err != nil {
		for _, inj := range done {
			err = errors.Join(err, b.m.sim.Remove(inj.ID))
		}
		return nil, refused(err)
	}
	if !r.KeepCache {
		err = b.dropAll(done)
	}
	b.m.watcher.lookNow()
	return wire(done), err
}

func (b backend) mayInject(r control.InjectRequest) error {
	if err := b.simulated(); err != nil {
		return err
	}
	switch {
	case b.m.state.meta.RealFiles && !r.OnRealFiles:
		return usage("use a scratch directory, or say --on-real-files", "%s held files before it was first mounted, and overwriting simulated poison really changes them", b.m.backing)
	case r.Random < 0:
		return usage("give 1 or more", "%d places can't be poisoned", r.Random)
	case (r.Random > 0) == (len(r.Ranges) > 0):
		return usage("give one of both", "an injection needs either ranges of a file or a number of random places")
	}
	return nil
}

func (b backend) simulated() error {
	if b.m.sim == nil {
		return usage("mount a scratch directory with --simulate dax", "%s is a real medium: poison can't be injected", b.m.path)
	}
	return nil
}

func (b backend) injectRanges(r control.InjectRequest) ([]sim.Injection, error) {
	fd, err := openBeneath(b.m.root, r.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, usage("give a file of the mount, not a symbolic link", "%s can't be opened: %v", r.Path, err)
	}
	defer unix.Close(fd)
	id, err := fileid.Of(fd)
	if err != nil {
		return nil, err
	}
	var done []sim.Injection
	for _, want := range r.Ranges {
		if err := b.flush(r, id.Ino, want); err != nil {
			return done, err
		}
		inj, err := b.m.sim.Inject(id, r.Path, fd, want, r.Latent)
		if err != nil {
			return done, err
		}
		done = append(done, inj)
	}
	return done, nil
}

func (b backend) injectRandom(r control.InjectRequest) ([]sim.Injection, error) {
	files, err := b.filesBelow(r.Path)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, f := range files {
		if err := b.flush(r, f.ino, wholeFile); err != nil {
			return nil, err
		}
		paths = append(paths, f.path)
	}
	return b.m.sim.InjectRandom(r.Seed, r.Random, paths, r.Latent)
}

// wholeFile is more than any file holds.
var wholeFile = ranges.Range{Len: 1 << 62}

// flush has dirty pages of mappings written before poison comes under them:
// writeback afterwards would end it.
func (b backend) flush(r control.InjectRequest, ino uint64, where ranges.Range) error {
	if r.KeepCache {
		return nil
	}
	return b.drop(ino, where)
}

// drop makes the kernel forget its cached pages of the range. It waits for
// requests that are under way, and so runs outside of any.
func (b backend) drop(ino uint64, where ranges.Range) error {
	if where.Off < 0 || where.Len <= 0 || where.End() < 0 {
		return nil // the medium will say what is wrong with it
	}
	return b.m.fs.Invalidate(ino, where.Widen(ranges.PageSize))
}

func (b backend) dropAll(injections []sim.Injection) error {
	var errs []error
	for _, inj := range injections {
		errs = append(errs, b.drop(inj.File.Ino, inj.Range))
	}
	return errors.Join(errs...)
}

type namedFile struct {
	path string // relative to the root of the mount
	ino  uint64
}

// filesBelow is the regular files with content at and below path, in the order
// of their names, without following symbolic links or leaving the filesystem.
func (b backend) filesBelow(path string) ([]namedFile, error) {
	root, err := os.OpenRoot(fdPath(b.m.root))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var files []namedFile
	dev := ^uint64(0)
	err = iofs.WalkDir(root.FS(), filepath.Clean("./"+path), func(path string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
			return iofs.ErrInvalid
		case dev == ^uint64(0):
			dev = st.Dev
		case st.Dev != dev && d.IsDir():
			return iofs.SkipDir
		}
		if info.Mode().IsRegular() && info.Size() > 0 && st.Dev == dev {
			files = append(files, namedFile{path, st.Ino})
		}
		return nil
	})
	if err != nil {
		return nil, usage("give a file or directory of the mount, not a symbolic link", "the files below %s can't be listed: %v", path, err)
	}
	return files, nil
}

// Injections is what is left of all injections.
func (b backend) Injections(context.Context) ([]control.Injection, error) {
	if err := b.simulated(); err != nil {
		return nil, err
	}
	return wire(b.m.sim.List()), nil
}

// RemoveInjection takes one injection back. What the engine and the kernel
// remember of it is forgotten, so that the bytes show again.
func (b backend) RemoveInjection(_ context.Context, id string) error {
	if err := b.simulated(); err != nil {
		return err
	}
	number, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return usage("see them with mendfs inject --list", "%q is not the number of an injection", id)
	}
	return b.takeBack(func() error { return b.m.sim.Remove(number) }, func(i sim.Injection) bool { return i.ID == number })
}

// ClearInjections takes all injections back.
func (b backend) ClearInjections(context.Context) error {
	if err := b.simulated(); err != nil {
		return err
	}
	return b.takeBack(b.m.sim.Clear, func(sim.Injection) bool { return true })
}

func (b backend) takeBack(remove func() error, is func(sim.Injection) bool) error {
	gone := slices.DeleteFunc(b.m.sim.List(), func(i sim.Injection) bool { return !is(i) })
	if err := remove(); err != nil {
		return refused(err)
	}
	b.m.engine.Recheck()
	b.m.watcher.lookNow()
	return b.dropAll(gone)
}

// refused sorts the medium's errors, whose texts name the way out.
func refused(err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	var wrong *sim.RangeError
	if errors.As(err, &wrong) || errors.Is(err, sim.ErrTooFew) || errors.Is(err, sim.ErrNoInjection) {
		return usage("", "%v", err)
	}
	return failed(err, "", "the simulated medium refused")
}

func wire(list []sim.Injection) []control.Injection {
	out := make([]control.Injection, 0, len(list))
	for _, i := range list {
		out = append(out, control.Injection{
			ID: strconv.FormatUint(i.ID, 10), Path: i.Path, PathB64: i.PathB64, File: i.File,
			Range: i.Range, Latent: i.Latent, Remaining: i.Remaining,
		})
	}
	return out
}
