package mount

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/mendfs/mendfs/recovery"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/locate"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/media/sim"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// poisonList is whoever keeps a list of media errors for the backing filesystem.
type poisonList interface {
	// changes tells when the list may have changed, until ctx ends.
	changes(ctx context.Context) <-chan struct{}
	// find is what is listed now. It may take as long as a walk over all files.
	find(ctx context.Context, threads int) (listing, error)
	// read is find for the watcher alone, and walks only if there is something new.
	read(ctx context.Context) (listing, error)
}

// listing is what is listed, by what it is used for.
type listing struct {
	files     []listedFile
	elsewhere []locate.Place // all that is not data of a file
	device    string
	sector    func(ranges.Range) int64 // of a piece of the device, on its disk; nil if there is none
	complete  bool                     // false: there may be more
	skipped   int                      // files that could not be asked, so that some of elsewhere may be theirs
	why       error
}

type listedFile struct {
	id   fileid.ID
	path string // "": not known
	list recovery.Listed
}

// name is what to call it in a message.
func (f listedFile) name() string { return cmp.Or(f.path, f.id.String()) }

func pointers(files []listedFile) []*listedFile {
	var all []*listedFile
	for i := range files {
		all = append(all, &files[i])
	}
	return all
}

// simulatedList is the simulator's known poison.
type simulatedList struct{ sim *sim.Medium }

// simulatedInterval is how often the simulator is asked; it costs next to nothing.
const simulatedInterval = time.Second

func (l simulatedList) changes(ctx context.Context) <-chan struct{} {
	ticks := make(chan struct{})
	go func() { // ends with ctx
		defer close(ticks)
		t := time.NewTicker(simulatedInterval)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			select {
			case <-ctx.Done():
				return
			case ticks <- struct{}{}:
			}
		}
	}()
	return ticks
}

// find looks whether the files are there still, which read leaves out.
func (l simulatedList) find(ctx context.Context, _ int) (listing, error) {
	l.sim.ForgetGone()
	return l.read(ctx)
}

func (l simulatedList) read(context.Context) (listing, error) {
	now := listing{complete: true}
	for _, k := range l.sim.Known() {
		now.files = append(now.files, listedFile{k.File, k.Path, recovery.Listed{Pieces: k.Listed}})
	}
	return now, nil
}

// kernelList is /sys/block/pmem*/badblocks, and whose the sectors are.
type kernelList struct {
	root   int
	volume *pmem.Volume

	bad  ranges.Set // when read found last
	last listing
}

// kernelInterval is how often the kernel's list is looked at without being told to.
const kernelInterval = 30 * time.Second

func (l *kernelList) changes(ctx context.Context) <-chan struct{} {
	return l.volume.Watch(ctx, kernelInterval)
}

// read goes by what it found last where nothing is new on the list: a repair takes
// one sector after the other off it.
func (l *kernelList) read(ctx context.Context) (listing, error) {
	list, err := l.volume.Bad()
	if err != nil {
		return listing{}, err
	}
	for r := range list.Bad.All() {
		if l.bad.Contains(r) {
			continue
		}
		now, err := l.locate(ctx, list, 1)
		if err == nil {
			l.bad, l.last = list.Bad, now
		}
		return now, err
	}
	l.bad = list.Bad
	l.last = l.last.still(&list.Bad)
	l.last.complete = list.Complete
	return l.last, nil
}

func (l *kernelList) find(ctx context.Context, threads int) (listing, error) {
	list, err := l.volume.Bad()
	if err != nil {
		return listing{}, err
	}
	return l.locate(ctx, list, threads)
}

// still is what of the listing is still bad.
func (l listing) still(bad *ranges.Set) listing {
	now := l
	now.files, now.elsewhere = nil, nil
	for _, f := range l.files {
		var left recovery.Listed
		for i, on := range f.list.On {
			if bad.Overlaps(on.Range) {
				left.Pieces, left.On = append(left.Pieces, f.list.Pieces[i]), append(left.On, on)
			}
		}
		if f.list = left; len(left.On) > 0 {
			now.files = append(now.files, f)
		}
	}
	for _, p := range l.elsewhere {
		if bad.Overlaps(p.Device) {
			now.elsewhere = append(now.elsewhere, p)
		}
	}
	return now
}

// locate finds out whose the bad bytes are.
func (l *kernelList) locate(ctx context.Context, list *pmem.List, threads int) (listing, error) {
	found, err := locate.Find(ctx, l.root, &list.Bad, threads)
	if err != nil {
		return listing{}, err
	}
	now := listing{device: l.volume.Name(), sector: sectorOf(l.volume), complete: list.Complete, skipped: found.Skipped, why: found.Why}
	files := map[string]int{} // in now.files, by identity
	for _, p := range found.Places {
		if p.Kind != pmem.File {
			now.elsewhere = append(now.elsewhere, p)
			continue
		}
		key := p.File.Key()
		if _, known := files[key]; !known {
			files[key] = len(now.files)
			now.files = append(now.files, listedFile{id: p.File, path: p.Path})
		}
		list := &now.files[files[key]].list
		list.Pieces = append(list.Pieces, p.In())
		list.On = append(list.On, recovery.OnDevice{Range: p.Device, Device: now.device, Sector: now.sector(p.Device)})
	}
	slices.SortFunc(now.files, func(a, b listedFile) int { return strings.Compare(a.path, b.path) })
	return now, nil
}
