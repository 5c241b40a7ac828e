package journal

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

var update = flag.Bool("update", false, "write testdata anew")

// must is for calls that may not fail.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempJournal is a journal in a real file.
func tempJournal(t testing.TB) *Journal {
	t.Helper()
	j, err := Open(filepath.Join(t.TempDir(), "journal"), testFS)
	must(t, err)
	t.Cleanup(func() { must(t, j.Shutdown()) })
	return j
}

func memJournal(t testing.TB) (*Journal, *memDisk) {
	t.Helper()
	d := newMemDisk(1)
	j, err := open(d, testPath, testFS)
	must(t, err)
	return j, d
}

// full is an intent with all its fields set.
func full() *Intent {
	return &Intent{
		FS: testFS, File: fileid.ID{Ino: 1311, Btime: -7, Handle: "1:0011ff"}, Path: "base/\xff\x00/2619",
		Range: ranges.Page(81920), Size: 82000, End: 82500, Mtime: -1, Ctime: 1 << 60, RestoreMtime: true, Boot: "b7a2",
		Image:   bytes.Repeat([]byte{0xa5}, ranges.PageSize),
		Missing: []ranges.Range{{Off: 81920, Len: 64}}, Lost: []ranges.Range{{Off: 81920, Len: 64}, {Off: 82048, Len: 64}},
		Overwritten: []ranges.Range{{Off: 82048, Len: 452}}, Time: 1763707445,
	}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := Open(path, testFS)
	must(t, err)
	in, kept := full(), full()
	must(t, j.Begin(in, kept))
	in.Punched = 99
	must(t, j.Punching(in.ID, 99))
	kept.Path = "elsewhere"
	must(t, j.Keep(kept))
	im := Image{Page: 8192, Data: bytes.Repeat([]byte{1}, ranges.PageSize), Missing: []ranges.Range{{Off: 8200, Len: 8}}, Pending: true}
	must(t, j.SaveImage(in.File, "p\xff", im))
	check := func(j *Journal) {
		t.Helper()
		if got := j.Intents(); !reflect.DeepEqual(got, []Intent{*in}) {
			t.Errorf("open intents %+v\nwant %+v", got, *in)
		}
		if got := j.Kept(); !reflect.DeepEqual(got, []Intent{*kept}) {
			t.Errorf("kept intents %+v\nwant %+v", got, *kept)
		}
		if got, ok, err := j.Image(in.File.Key(), 8192); !ok || err != nil || !reflect.DeepEqual(got, im) {
			t.Errorf("image %+v, %v, %v\nwant %+v", got, ok, err, im)
		}
		for s, err := range j.Images(true) {
			if err != nil || s.File != in.File || s.Path != "p\xff" {
				t.Errorf("pending image of %v %q, %v", s.File, s.Path, err)
			}
		}
		if st := j.Stats(); st.Open != 1 || st.Kept != 1 || st.Images != 0 || st.Pending != 1 || st.Err != nil {
			t.Errorf("stats %+v", st)
		}
	}
	check(j)
	v, err := View(path)
	must(t, err)
	check(v)
	if err := v.Begin(full()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Begin on a View: %v", err)
	}
	if err := v.Close(in.ID); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Close on a View: %v", err)
	}
	must(t, v.Shutdown())
	must(t, j.Shutdown())
	must(t, j.Shutdown())
	if err := j.Begin(full()); !errors.Is(err, ErrClosed) {
		t.Errorf("Begin after Shutdown: %v", err)
	}
	before, err := os.ReadFile(path)
	must(t, err)
	j, err = Open(path, testFS)
	must(t, err)
	check(j)
	must(t, j.Shutdown())
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a journal that was only looked at has changed: %v", err)
	}
}

// TestGolden reads a journal of version 1, as every version must.
func TestGolden(t *testing.T) {
	const golden = "testdata/journal.v1"
	if *update {
		must(t, os.WriteFile(golden, newSample(t, true).raw, 0o644))
	}
	raw, err := os.ReadFile(golden)
	must(t, err)
	path := filepath.Join(t.TempDir(), "journal")
	must(t, os.WriteFile(path, raw, 0o600))
	for range 2 { // the second time it is one that this version wrote
		j, err := Open(path, testFS)
		must(t, err)
		kept := j.Kept()
		if len(j.Intents()) != 0 || len(kept) != 1 || kept[0].Path != "a" || len(kept[0].Image) != ranges.PageSize ||
			!slices.Equal(kept[0].Lost, []ranges.Range{{Off: 4096, Len: 64}}) {
			t.Errorf("open %+v kept %+v", j.Intents(), kept)
		}
		if im, ok, err := j.Image(fileid.ID{}.Key(), 4096); !ok || err != nil || !im.Pending || !bytes.HasPrefix(im.Data, []byte("journal ")) {
			t.Errorf("image %v %v %+v", ok, err, im)
		}
		if got := j.Pages(fileid.ID{}.Key()).String(); got != "{[4096 +4096)}" {
			t.Errorf("pages with an image %s", got)
		}
		if ids, err := j.Checkpoint(); err != nil || len(ids) != 1 {
			t.Errorf("closed %v, %v", ids, err)
		}
		must(t, j.Shutdown())
	}
}

// TestCompaction: garbage goes, everything live stays, and a View that was
// opened before goes on reading.
func TestCompaction(t *testing.T) {
	j := tempJournal(t)
	j.compactAt = 2 << 20
	in, kept, file := full(), full(), fileid.ID{Ino: 5}
	must(t, j.Begin(in, kept))
	must(t, j.Punching(in.ID, 3))
	must(t, j.Keep(kept))
	must(t, j.SaveImage(file, "f", Image{Page: 4096, Data: bytes.Repeat([]byte{9}, ranges.PageSize)}))
	want := dump(t, j)
	old, err := View(j.path)
	must(t, err)
	defer func() { must(t, old.Shutdown()) }()
	var closed []uint64
	for j.garbage() <= j.compactAt {
		g := full()
		must(t, j.Begin(g))
		must(t, j.Close(g.ID))
		closed = append(closed, g.ID)
	}
	ids, err := j.Checkpoint()
	must(t, err)
	if !slices.Equal(ids, closed) {
		t.Errorf("Checkpoint returned %d ids, want %d", len(ids), len(closed))
	}
	if st, err := os.Stat(j.path); err != nil || st.Size() > 1<<20 {
		t.Errorf("size after compaction %v, %v", st.Size(), err)
	}
	if got := dump(t, j); got != want {
		t.Errorf("after compaction\n%s\nwant\n%s", got, want)
	}
	if got := dump(t, old); got != want {
		t.Errorf("a View from before\n%s\nwant\n%s", got, want)
	}
	again, err := View(j.path)
	must(t, err)
	defer func() { must(t, again.Shutdown()) }()
	if got := dump(t, again); got != want {
		t.Errorf("the new file\n%s\nwant\n%s", got, want)
	}
}

// TestConcurrent has all calls at once, with compactions and Views; for the race
// detector, and for what each goroutine knows of its own intents and images.
func TestConcurrent(t *testing.T) {
	j := tempJournal(t)
	j.compactAt = 64 << 10
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			file := fileid.ID{Ino: uint64(n)}
			for i := range int64(60) {
				in := full()
				im := Image{Page: i % 4 * ranges.PageSize, Data: bytes.Repeat([]byte{byte(n), byte(i)}, ranges.PageSize/2), Pending: i%7 == 0}
				err := errors.Join(j.Begin(in), j.Punching(in.ID, i), j.SaveImage(file, "f", im))
				got, ok, ierr := j.Image(file.Key(), im.Page)
				if err != nil || ierr != nil || !ok || !reflect.DeepEqual(got, im) {
					t.Errorf("image %d of %d: %v, %v, %v", i, n, err, ok, ierr)
				}
				if i%10 == 0 {
					err = errors.Join(j.Keep(in), j.Drop(in.ID), j.DropImages(file.Key(), ranges.Page(im.Page)))
				}
				if err := errors.Join(err, j.Close(in.ID)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	var seen []uint64
	var around sync.WaitGroup
	around.Go(func() {
		for {
			ids, err := j.Checkpoint()
			if err != nil {
				t.Error(err)
			}
			seen = append(seen, ids...)
			v, err := View(j.path)
			if err != nil {
				t.Error(err)
				return
			}
			if err := v.Shutdown(); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	wg.Wait()
	close(done)
	around.Wait()
	ids, err := j.Checkpoint()
	must(t, err)
	seen = append(seen, ids...)
	slices.Sort(seen)
	if len(seen) != 8*60 || len(slices.Compact(seen)) != 8*60 {
		t.Errorf("Checkpoints returned %d ids, want each of %d once", len(seen), 8*60)
	}
	if st := j.Stats(); st.Open != 0 || st.Kept != 0 {
		t.Errorf("left over: %+v", st)
	}
}
