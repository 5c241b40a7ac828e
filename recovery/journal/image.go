package journal

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// SalvageLimit is how many bytes of images that are not pending are kept.
const SalvageLimit = 64 << 20

// Image is the best that is known of a page that can't be read.
type Image struct {
	Page    int64          // offset of the page in the file, bytes
	Data    []byte         // one page
	Missing []ranges.Range // bytes of Data that are zero because they could not be had; file offsets
	Pending bool           // the medium refused the repair: not salvage but data owed
}

// Saved is an image and the file that it is of.
type Saved struct {
	File fileid.ID
	Path string // when the image was saved; any bytes
	Image
}

// SaveImage keeps the image of a page, in place of an older one. It is there at
// once, and durable as the package comment says: a pending one on return, others
// within a second. A page without one good byte is not kept. The error is
// ErrSalvageFull when a new image would exceed SalvageLimit; pending ones don't
// count.
func (j *Journal) SaveImage(file fileid.ID, path string, im Image) error {
	if !im.whole() {
		return fmt.Errorf("journal: image of %d bytes at offset %d of %s: not a page", len(im.Data), im.Page, path)
	}
	if !im.Pending && ranges.Of(im.Missing...).Contains(ranges.Page(im.Page)) {
		return nil
	}
	r := Saved{file, path, im}.record()
	j.mu.Lock()
	defer j.mu.Unlock()
	if im.Pending {
		return j.durable(r)
	}
	if old, ok := j.place(file.Key(), im.Page); (!ok || old.pending) && (j.state.salvaged+1)*ranges.PageSize > SalvageLimit {
		return fmt.Errorf("journal %s: %w: %d MiB", j.path, ErrSalvageFull, SalvageLimit>>20)
	}
	if err := j.mend(); err != nil {
		return err
	}
	if err := j.append(r); err != nil {
		return err
	}
	j.later()
	return nil
}

// Image is the image of the page at offset page of the file with that key, and
// whether there is one; the error is, or wraps, ErrUnreadable if there was one and
// a compaction could not copy it. It is read from the journal, its checksum compared, and
// kept in memory for a while: what it holds is shared and must not be changed.
func (j *Journal) Image(key string, page int64) (Image, bool, error) {
	l, ok := j.spot(key, page)
	if !ok {
		return Image{}, false, nil
	}
	if im, ok := l.cache.get(l.at.off); ok {
		return im, true, nil
	}
	s, ok, err := j.saved(key, page, l)
	if ok && err == nil {
		l.cache.put(l.at.off, s.Image) // of no use, and no harm, if the file was replaced
	}
	return s.Image, ok, err
}

// spot is where an image is to be read, and where it is kept then.
type spot struct {
	file  file
	id    [16]byte // of the file
	at    place
	cache *cache
}

// spot is where the image of a page lies now, and whether there is one.
func (j *Journal) spot(key string, page int64) (spot, bool) {
	j.index.RLock()
	defer j.index.RUnlock()
	at, ok := j.place(key, page)
	return spot{j.file, j.head.id, at, &j.state.read}, ok
}

// saved reads the image of a page that lay there a moment ago. No lock is held, since the
// state disk may be slow: if the image was replaced or the file rewritten meanwhile,
// it is read from where it lies now.
func (j *Journal) saved(key string, page int64, from spot) (Saved, bool, error) {
	for {
		s, err := from.read(j.path, key, page)
		if err == nil {
			return s, true, nil
		}
		now, ok := j.spot(key, page)
		if !ok {
			return Saved{}, false, nil
		}
		if now == from {
			return Saved{}, false, err
		}
		from = now
	}
}

func (l spot) read(path, key string, page int64) (Saved, error) {
	if l.at.gone {
		return Saved{}, fmt.Errorf("journal %s: page at offset %d: %w", path, page, ErrUnreadable)
	}
	r, err := readRecord(l.file, path, l.id, l.at.off, int64(l.at.size))
	if err != nil {
		return Saved{}, err
	}
	d := &decoder{b: r.payload}
	s := d.saved()
	if d.end() != nil || r.typ != recImage || s.File.Key() != key || s.Page != page {
		return Saved{}, &DamageError{Path: path, Off: l.at.off, What: "another record where an image was"}
	}
	return s, nil
}

// place is where the image lies. Callers hold mu or index.
func (j *Journal) place(key string, page int64) (place, bool) {
	p := j.state.files[key]
	if p == nil {
		return place{}, false
	}
	at, ok := p.at[page]
	return at, ok
}

// Pages are the pages of the file that have an image. The set is shared and must
// not be changed; it stays as it is when images come and go.
func (j *Journal) Pages(key string) *ranges.Set {
	j.index.RLock()
	defer j.index.RUnlock()
	p := j.state.files[key]
	if p == nil {
		return &ranges.Set{}
	}
	set := p.set.Load()
	if set == nil {
		set = &ranges.Set{}
		for page := range p.at {
			set.Add(ranges.Page(page))
		}
		p.set.Store(set)
	}
	return set
}

// HasImages reports whether any file has an image.
func (j *Journal) HasImages() bool {
	j.index.RLock()
	defer j.index.RUnlock()
	return len(j.state.files) > 0
}

// Images yields the images of all files, only the pending ones if so asked. Of one
// that can't be read only File, Page and Pending are set, besides the error, and the
// next follows.
func (j *Journal) Images(pendingOnly bool) iter.Seq2[Saved, error] {
	type one struct {
		file fileid.ID
		key  string
		page int64
	}
	return func(yield func(Saved, error) bool) {
		var all []one
		j.index.RLock()
		for key, p := range j.state.files {
			for page, at := range p.at {
				if at.pending || !pendingOnly {
					all = append(all, one{p.file, key, page})
				}
			}
		}
		j.index.RUnlock()
		slices.SortFunc(all, func(a, b one) int {
			if a.key != b.key {
				return cmp.Compare(a.key, b.key)
			}
			return cmp.Compare(a.page, b.page)
		})
		for _, o := range all {
			from, ok := j.spot(o.key, o.page)
			if !ok {
				continue // dropped meanwhile
			}
			s, ok, err := j.saved(o.key, o.page, from)
			if err != nil {
				s = Saved{File: o.file, Image: Image{Page: o.page, Pending: from.at.pending}}
			}
			if (ok || err != nil) && !yield(s, err) {
				return
			}
		}
	}
}

// DropImages drops the images of all pages of the file that r touches. They are
// gone at once; an error means that they may be back after a crash.
func (j *Journal) DropImages(key string, r ranges.Range) error {
	r.Len = min(r.Len, math.MaxInt64-r.Off)
	if r.Empty() || !j.hasImage(key, r) {
		return nil
	}
	var e encoder
	e.text(key)
	e.rng(r)
	return j.note(record{recClear, e})
}

// hasImage reports whether a page of the file that r touches has an image.
func (j *Journal) hasImage(key string, r ranges.Range) bool {
	j.index.RLock()
	defer j.index.RUnlock()
	p := j.state.files[key]
	if p == nil {
		return false
	}
	for range p.touched(r) {
		return true
	}
	return false
}

// whole reports whether im is of one page.
func (im Image) whole() bool { return im.placed() && len(im.Data) == ranges.PageSize }

// placed reports whether a page can be where im is.
func (im Image) placed() bool {
	return im.Page >= 0 && im.Page < math.MaxInt64-ranges.PageSize && im.Page%ranges.PageSize == 0
}

func (s Saved) record() record {
	var e encoder
	e.file(s.File)
	e.text(s.Path)
	e.int(s.Page)
	e.bool(s.Pending)
	e.ranges(s.Missing)
	e.bytes(s.Data)
	return record{recImage, e}
}

func (d *decoder) saved() Saved {
	var s Saved
	s.File, s.Path = d.file(), d.text()
	s.Page, s.Pending, s.Missing, s.Data = d.int(), d.bool(), d.ranges(), d.bytes()
	if !s.whole() && (s.Data != nil || !s.placed()) {
		d.faulty = true
	}
	return s
}

// PendingPages are the pages of the file whose image is owed to the medium.
func (j *Journal) PendingPages(key string) *ranges.Set {
	j.index.RLock()
	defer j.index.RUnlock()
	set := &ranges.Set{}
	if p := j.state.files[key]; p != nil {
		for page, at := range p.at {
			if at.pending {
				set.Add(ranges.Page(page))
			}
		}
	}
	return set
}
