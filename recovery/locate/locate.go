// Package locate says whose the bad bytes of a device are: which file has them,
// and where in it, or what else they are used for. It reads no data of files.
//
// A filesystem that keeps a map of owners (XFS with rmapbt, asked by GETFSMAP as
// root) knows the inode at once, and a walk over the directories finds its name.
// On all others each file below the root is asked where it lies (FIEMAP).
//
// All of it is a snapshot: files move, grow and go away meanwhile. Whoever acts
// on a Place asks again first.
package locate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Place is what some bad bytes of the device are used for.
type Place struct {
	Device ranges.Range // bytes of the filesystem's device
	// Kind is File for data of the file Path; Metadata for what belongs to the
	// filesystem, or to the directory or link Path; Free for what no file has written;
	// Unknown for what is in use, but by nothing that was found below the root.
	Kind pmem.Kind
	Path string    // below the root; "" if there is none
	File fileid.ID // with Path
	Off  int64     // in the file, of the first byte of Device
}

// In is the bytes of the file, for Kind File.
func (p Place) In() ranges.Range { return ranges.Range{Off: p.Off, Len: p.Device.Len} }

// Found is the answer of Find.
type Found struct {
	Places []Place // by device offset, then path; shared bytes are in several
	Asked  int     // files and directories that were looked at
	// Skipped is how many could not be looked at, and Why what came of the first.
	Skipped int
	Why     error
}

// Find looks for what the bad bytes of the filesystem's device are used for, at
// and below the directory root (O_PATH will do), not in filesystems that are
// mounted below it. It uses so many threads at once, and ends early with ctx.
// Bytes of a file that has several names are told with one of them.
func Find(ctx context.Context, root int, bad *ranges.Set, threads int) (*Found, error) {
	if bad.Empty() {
		return &Found{}, nil
	}
	dir, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the directory: %w", err)
	}
	defer unix.Close(dir)
	s := &search{owned: map[uint64][]pmem.Owner{}, seen: map[uint64]bool{}}
	if err := s.askOwners(dir, bad); err != nil {
		return nil, err
	}
	if len(s.owned) > 0 || !s.unknown.Empty() {
		if err := s.walk(ctx, dir, threads); err != nil {
			return nil, err
		}
	}
	s.rest()
	slices.SortFunc(s.found.Places, func(a, b Place) int {
		return cmp.Or(cmp.Compare(a.Device.Off, b.Device.Off), cmp.Compare(a.Path, b.Path))
	})
	return &s.found, nil
}

// askOwners asks the filesystem for all it knows.
func (s *search) askOwners(dir int, bad *ranges.Set) error {
	for r := range bad.All() {
		owners, err := pmem.Owners(dir, r)
		if err != nil && !errors.Is(err, pmem.ErrNoMap) {
			return err
		}
		told := ranges.Of()
		for _, o := range owners {
			switch {
			case o.Kind == pmem.Unknown:
				continue
			case o.Ino != 0:
				s.owned[o.Ino] = append(s.owned[o.Ino], o)
			default:
				s.found.Places = append(s.found.Places, Place{Device: o.Device, Kind: o.Kind})
			}
			told.Add(o.Device)
		}
		for rest := range told.Gaps(r) {
			s.unknown.Add(rest)
		}
	}
	return nil
}

// rest adds what nothing below the root has.
func (s *search) rest() {
	for _, owners := range s.owned {
		for _, o := range owners {
			kind := pmem.Unknown
			if o.Kind == pmem.Metadata {
				kind = o.Kind
			}
			s.found.Places = append(s.found.Places, Place{Device: o.Device, Kind: kind})
		}
	}
	used := ranges.Of()
	for _, p := range s.found.Places {
		used.Add(p.Device)
	}
	for r := range s.unknown.All() {
		for gap := range used.Gaps(r) {
			s.found.Places = append(s.found.Places, Place{Device: gap})
		}
	}
}
