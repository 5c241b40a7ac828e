package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestUnreadableImageKeepsNobodyBack: the state disk has lost images. The journal is
// compacted all the same: the others are there, those are known to have been there, as
// what they were, and the old file stays.
func TestUnreadableImageKeepsNobodyBack(t *testing.T) {
	for _, how := range []string{"checkpoint", "full disk"} {
		j, d := memJournal(t)
		file := garbageOf(t, j) // with images of two pages
		page := bytes.Repeat([]byte{7}, ranges.PageSize)
		must(t, j.SaveImage(file, "f", Image{Page: 3 * 4096, Data: page, Pending: true}))
		must(t, j.SaveImage(file, "f", Image{Page: 4 * 4096, Data: page}))
		_, _, err := j.Image(file.Key(), 4*4096) // is in memory now
		must(t, err)
		must(t, j.Sync())
		old := d.names[testPath]
		for _, off := range []int64{4096, 3 * 4096, 4 * 4096} {
			at, _ := j.place(file.Key(), off)
			old.cache[at.off+100] ^= 1
		}
		was := j.head.first
		if how == "checkpoint" {
			_, err = j.Checkpoint()
		} else {
			j.mu.Lock()
			err = j.rewrite()
			j.mu.Unlock()
		}
		must(t, err)
		if j.head.first <= was {
			t.Errorf("%s: the journal was not compacted", how)
		}
		unread := j.TakeUnread()
		if len(unread) != 2 || unread[0].Page != 4096 || unread[0].Pending || unread[1].Page != 3*4096 || !unread[1].Pending ||
			!errors.Is(unread[0].Err, ErrDamaged) || d.names[unread[0].Kept] != old || len(j.TakeUnread()) != 0 {
			t.Errorf("%s: unread: %+v", how, unread)
		}
		if how == "checkpoint" {
			_, err = j.Checkpoint() // what is gone is not told of again
			must(t, errors.Join(err, j.Shutdown()))
			d = d.restart()
			j, err = open(d, testPath, testFS)
			must(t, err)
		}
		checkUnread(t, j, file)
		must(t, j.SaveImage(file, "f", Image{Page: 4096, Data: page}))
		if _, ok, err := j.Image(file.Key(), 4096); !ok || err != nil {
			t.Errorf("%s: saved anew: %v, %v", how, ok, err)
		}
		must(t, j.DropImages(file.Key(), ranges.Page(3*4096)))
		if _, ok, err := j.Image(file.Key(), 3*4096); ok || err != nil || len(j.TakeUnread()) != 0 {
			t.Errorf("%s: dropped: %v, %v", how, ok, err)
		}
		must(t, j.Shutdown())
	}
}

// checkUnread finds the images of pages 2 and 4, and that 1 and 3 had some.
func checkUnread(t *testing.T, j *Journal, file fileid.ID) {
	t.Helper()
	pages := j.Pages(file.Key())
	if !pages.Contains(ranges.Range{Off: 4096, Len: 4 * 4096}) || j.PendingPages(file.Key()).String() != ranges.Of(ranges.Page(3*4096)).String() {
		t.Errorf("images of %v, pending %v", pages, j.PendingPages(file.Key()))
	}
	for n := int64(1); n <= 4; n++ {
		im, ok, err := j.Image(file.Key(), n*4096)
		if gone := n == 1 || n == 3; gone != errors.Is(err, ErrUnreadable) || !gone && (!ok || err != nil || len(im.Data) != ranges.PageSize) {
			t.Errorf("page %d: %v, %v", n, ok, err)
		}
	}
	var seen, failed int
	for s, err := range j.Images(false) {
		if seen++; err != nil {
			failed++
		}
		if s.File != file || (err != nil) != (s.Data == nil) || s.Pending != (s.Page == 3*4096) {
			t.Errorf("Images: page %d of %v, pending %v, %v", s.Page, s.File, s.Pending, err)
		}
	}
	if seen != 4 || failed != 2 {
		t.Errorf("Images: %d, %d of them unreadable", seen, failed)
	}
}
