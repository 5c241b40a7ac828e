package mount

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/locate"
	"github.com/mendfs/mendfs/recovery/media/pmem"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// scanThreads is how many threads a scan that somebody waits for may have: enough
// to hide that directories come from the disk, and no more than the processors.
func scanThreads() int { return min(4, runtime.NumCPU()) }

// Scan is what is listed, and what for, at and below path.
func (b backend) Scan(ctx context.Context, path string) (control.Scan, error) {
	if b.m.list == nil {
		return control.Scan{}, nil
	}
	now, err := b.m.list.find(ctx, scanThreads())
	if err != nil {
		return control.Scan{}, unlisted(err, b.m.backing)
	}
	source := "badblocks"
	if b.m.sim != nil {
		source = "simulated"
	}
	path = filepath.Clean("./" + path)
	now, one := now.only(b.m.root, path)
	if b.m.sim != nil && !one {
		name(ctx, b.m.root, pointers(now.files)...)
	}
	return now.scan(path, source), nil
}

// ScanDirectory is the same for a directory that is not mounted by mendfs. Of a
// file it says only what device it is on.
func ScanDirectory(ctx context.Context, path string) (control.Scan, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return control.Scan{}, notFound(err, path)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return control.Scan{}, unlisted(err, path)
	}
	volume, err := pmem.Open(st.Dev)
	if errors.Is(err, pmem.ErrNotPmem) {
		return control.Scan{}, nil
	}
	if err != nil {
		return control.Scan{}, unlisted(err, path)
	}
	defer volume.Close() // it was only read from
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return control.Scan{Device: volume.Name()}, nil
	}
	now, err := (&kernelList{root: fd, volume: volume}).find(ctx, scanThreads())
	if err != nil {
		return control.Scan{}, unlisted(err, path)
	}
	return now.scan(".", "badblocks"), nil
}

func unlisted(err error, path string) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return failed(err, "see dmesg, or read all with mendfs scan --read", "the list of media errors of %s can't be had", path)
}

// name gives the files the names that they have now, or had when last seen; "" where
// one is there and can't be found. It walks over all files if the kernel does not
// know one of the names, as of a file that nobody has looked up since it was mounted.
func name(ctx context.Context, root int, files ...*listedFile) {
	w := walk{ctx: ctx, wanted: map[uint64]bool{}, found: map[string]string{}, whole: true}
	var unnamed []*listedFile
	for _, f := range files {
		now, known := nameNow(root, f)
		if known {
			f.path = now
			continue
		}
		unnamed = append(unnamed, f)
		w.wanted[f.id.Ino] = true
	}
	if len(unnamed) == 0 {
		return
	}
	if err := w.descend(root, ".", "."); err != nil {
		w.whole = false
	}
	for _, f := range unnamed {
		if now, found := w.found[f.id.Key()]; found {
			f.path = filepath.Clean(now)
		} else if !w.whole {
			f.path = ""
		}
	}
}

// nameNow is what the kernel calls the file now, or what it was called before it was
// removed; known is false where only a walk can tell.
func nameNow(root int, f *listedFile) (name string, known bool) {
	fd, err := fileid.Open(root, f.id, f.path, unix.O_PATH)
	if err != nil {
		return f.path, fileid.Gone(root, f.id, f.path)
	}
	defer unix.Close(fd)
	if name = fileid.Path(root, fd); name != "" {
		return name, true
	}
	var st unix.Stat_t
	return f.path, unix.Fstat(fd, &st) == nil && st.Nlink == 0
}

// only is what is listed of the regular file that is called path now, by whichever of its
// names; false if there is no such file.
func (l listing) only(root int, path string) (listing, bool) {
	fd, err := openBeneath(root, path, unix.O_PATH)
	if err != nil {
		return l, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return l, false
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return l, false
	}
	l.files = slices.DeleteFunc(l.files, func(f listedFile) bool { return f.id.Key() != id.Key() })
	for i := range l.files {
		l.files[i].path = path
	}
	return l, true
}

// scan is the listing as far as it concerns the clean path, "." for all. A file
// whose name is not known may be anywhere.
func (l listing) scan(path, source string) control.Scan {
	s := control.Scan{List: source, Device: l.device, Complete: l.complete, Skipped: l.skipped, Places: []control.Place{}}
	if l.why != nil {
		s.Why = l.why.Error()
	}
	for _, f := range l.files {
		if path != "." && f.path != "" && f.path != path && !strings.HasPrefix(f.path, path+"/") {
			continue
		}
		for i, piece := range f.list.Pieces {
			p := control.Place{Use: "file", Range: piece, Found: []string{source}, Next: "overwrite it, or put the file back from a copy"}
			if f.list.On != nil {
				p.Device, p.Sector = f.list.On[i].Device, &f.list.On[i].Sector
			}
			p.Path, p.PathB64 = control.Wire(f.path)
			if f.path == "" {
				p.Ino, p.Next = f.id.Ino, fmt.Sprintf("its name can't be found out, so that it may be of another directory: find DIR -inum %d, as root, finds it", f.id.Ino)
			}
			s.Places = append(s.Places, p)
		}
	}
	if path != "." {
		return s
	}
	for _, e := range l.elsewhere {
		s.Places = append(s.Places, l.place(e, source))
	}
	return s
}

func (l listing) place(e locate.Place, source string) control.Place {
	_, next := UseOf(e, l.device)
	p := control.Place{Use: e.Kind.String(), Range: e.Device, Device: l.device, Found: []string{source}, Next: next}
	if l.sector != nil {
		sector := l.sector(e.Device)
		p.Sector = &sector
	}
	p.Path, p.PathB64 = control.Wire(e.Path)
	return p
}

// sectorOf is the first sector of a piece of the volume, on its disk.
func sectorOf(v *pmem.Volume) func(ranges.Range) int64 {
	return func(r ranges.Range) int64 {
		_, sector := v.Sector(r.Off)
		return sector
	}
}
