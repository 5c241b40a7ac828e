package journal

import (
	"fmt"
	"sync/atomic"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// state is what the records of a journal add up to. It changes only by apply,
// for a record just appended as for one found by a scan, so that what is in
// memory is what the next Open will find.
//
// Open and kept intents are held with their images: there are as many as
// repairs were under way at once. Of salvage images only the place is held.
type state struct {
	open, kept map[uint64]stored
	files      map[string]*pages // by fileid.ID.Key
	closed     []uint64          // ids that Checkpoint has not yet returned
	next       uint64            // the next intent's ID
	live       int64             // bytes of the records that a compaction copies
	salvaged   int               // images that are not pending
	pending    int
	read       cache // images that were asked for
}

// stored is an intent and the size of its record in the file.
type stored struct {
	Intent
	size int64
}

// pages are the images of one file.
type pages struct {
	file fileid.ID
	at   map[int64]place
	set  atomic.Pointer[ranges.Set] // of the pages in at; nil until asked for; never changed
}

// place is where the record of an image lies.
type place struct {
	off     int64
	size    int32
	pending bool
	gone    bool // the record says only that the image could not be read
}

func newState() *state {
	return &state{open: map[uint64]stored{}, kept: map[uint64]stored{}, files: map[string]*pages{}, next: 1}
}

// apply does what the record at off says. An error means that the record can't
// have been written by this version.
func (s *state) apply(r record, off int64) error {
	d := &decoder{b: r.payload}
	switch r.typ {
	case recIntent:
		in := d.intent()
		if err := d.end(); err != nil {
			return err
		}
		s.put(s.open, stored{in, r.framed()})
	case recPunching:
		id, now := d.uint(), d.int()
		in, ok := s.open[id]
		in.Punched = now
		if len(d.b) > 0 {
			in.Ctime = d.int() // of Zeroing
		}
		if ok {
			s.open[id] = in
		}
	case recClose:
		for len(d.b) > 0 {
			id := d.uint()
			s.remove(s.open, id)
			s.closed = append(s.closed, id)
		}
	case recKeep:
		in := d.intent()
		if err := d.end(); err != nil {
			return err
		}
		s.remove(s.open, in.ID)
		s.put(s.kept, stored{in, r.framed()})
	case recDrop:
		s.remove(s.kept, d.uint())
	case recImage:
		im := d.saved()
		if err := d.end(); err != nil {
			return err
		}
		s.save(im.File, im.Page, place{off, int32(r.framed()), im.Pending, im.Data == nil})
	case recClear:
		key := d.text()
		s.clear(key, d.rng())
	case recSeal:
	default:
		return fmt.Errorf("a record of the unknown type %d", r.typ)
	}
	return d.end()
}

func (s *state) put(to map[uint64]stored, in stored) {
	s.remove(to, in.ID)
	to[in.ID] = in
	s.live += in.size
	s.next = max(s.next, in.ID+1)
}

func (s *state) remove(from map[uint64]stored, id uint64) {
	s.live -= from[id].size
	delete(from, id)
}

func (s *state) save(file fileid.ID, page int64, at place) {
	key := file.Key()
	p := s.files[key]
	if p == nil {
		p = &pages{file: file, at: map[int64]place{}}
		s.files[key] = p
	}
	if old, ok := p.at[page]; ok {
		s.count(old, -1)
		s.read.drop(old.off)
	} else {
		p.set.Store(nil)
	}
	p.at[page] = at
	s.count(at, +1)
}

// clear drops the images of all pages that r touches.
func (s *state) clear(key string, r ranges.Range) {
	p := s.files[key]
	if p == nil || r.Empty() {
		return
	}
	for page := range p.touched(r) {
		s.count(p.at[page], -1)
		s.read.drop(p.at[page].off)
		delete(p.at, page)
	}
	p.set.Store(nil)
	if len(p.at) == 0 {
		delete(s.files, key)
	}
}

func (s *state) count(at place, n int) {
	s.live += int64(n) * int64(at.size)
	if at.pending {
		s.pending += n
		return
	}
	s.salvaged += n
}

// touched yields the pages with an image that have a byte in common with r.
// The page just yielded may be deleted.
func (p *pages) touched(r ranges.Range) func(yield func(int64) bool) {
	return func(yield func(int64) bool) {
		if n := r.Len / ranges.PageSize; n < int64(len(p.at)) {
			first := ranges.Page(r.Off).Off
			for i := range n + 2 { // with a part of a page at each end
				page := first + i*ranges.PageSize
				if _, ok := p.at[page]; ok && ranges.Page(page).Overlaps(r) && !yield(page) {
					return
				}
			}
			return
		}
		for page := range p.at {
			if ranges.Page(page).Overlaps(r) && !yield(page) {
				return
			}
		}
	}
}
