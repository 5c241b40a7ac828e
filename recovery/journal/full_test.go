package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestFullDisk on a real, tiny disk: Begin refuses with the errno; what was
// there stays; garbage in the journal is room; and room made by others is used.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP full disk: mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	j, err := Open(filepath.Join(dir, "journal"), testFS)
	must(t, err)
	defer func() { must(t, j.Shutdown()) }()
	var ids []uint64
	for {
		in := full()
		if err = j.Begin(in); err != nil {
			break
		}
		ids = append(ids, in.ID)
	}
	if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d intents: %v", len(ids), err)
	}
	if got := len(j.Intents()); got != len(ids) {
		t.Fatalf("%d intents open, want %d", got, len(ids))
	}
	v, err := View(filepath.Join(dir, "journal"))
	must(t, err)
	if got := len(v.Intents()); got != len(ids) {
		t.Fatalf("%d intents in the file, want %d", got, len(ids))
	}
	must(t, v.Shutdown())
	must(t, j.Close(ids[:len(ids)-10]...))
	for range 3 * len(ids) { // many times what fits
		in := full()
		must(t, j.Begin(in))
		must(t, j.Close(in.ID))
	}
	if got := len(j.Intents()); got != 10 {
		t.Fatalf("%d intents open, want 10", got)
	}
}

// TestOpenOnFullDisk: a state disk that takes nothing does not keep a crashed
// mount's images from being read; repairs are refused.
func TestOpenOnFullDisk(t *testing.T) {
	j, d := memJournal(t)
	must(t, j.Begin(full()))
	d = d.restart()
	d.fail = func(op string) error { return unix.ENOSPC }
	j, err := open(d, testPath, testFS)
	must(t, err)
	if len(j.Intents()) != 1 {
		t.Error("the open intent is not there")
	}
	if err := j.Begin(full()); !errors.Is(err, ErrFull) {
		t.Errorf("Begin: %v", err)
	}
	if err := j.Close(j.Intents()[0].ID); !errors.Is(err, ErrFull) {
		t.Errorf("Close: %v", err)
	}
	if len(j.Intents()) != 0 {
		t.Error("the intent was closed and is still open")
	}
}

func TestSalvageLimit(t *testing.T) {
	j := tempJournal(t)
	file, data := fileid.ID{Ino: 1}, make([]byte, ranges.PageSize)
	save := func(page int64, pending bool) error {
		return j.SaveImage(file, "f", Image{Page: page * ranges.PageSize, Data: data, Pending: pending})
	}
	const most = SalvageLimit / ranges.PageSize
	for page := range int64(most) {
		must(t, save(page, false))
	}
	if err := save(most, false); !errors.Is(err, ErrSalvageFull) {
		t.Fatalf("one more: %v", err)
	}
	must(t, save(0, false))   // in place of another
	must(t, save(most, true)) // owed
	if err := save(most, false); !errors.Is(err, ErrSalvageFull) {
		t.Fatalf("one more, that was owed: %v", err)
	}
	must(t, save(1, true)) // makes room
	must(t, save(most, false))
	must(t, j.DropImages(file.Key(), ranges.Range{Off: 4095, Len: 2})) // pages 0 and 1
	if got := j.Pages(file.Key()).String(); got != fmt.Sprintf("{[8192 +%d)}", SalvageLimit-ranges.PageSize) {
		t.Errorf("pages with an image %s", got)
	}
	if st := j.Stats(); st.Images != most-1 || st.Pending != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestRefusedInput(t *testing.T) {
	j := tempJournal(t)
	image := func(im Image) error { return j.SaveImage(fileid.ID{}, "f", im) }
	page := make([]byte, ranges.PageSize)
	for name, err := range map[string]error{
		"no range":             j.Begin(&Intent{}),
		"half a page":          j.Begin(&Intent{Range: ranges.Range{Off: 0, Len: 512}}),
		"unaligned":            j.Begin(&Intent{Range: ranges.Range{Off: 512, Len: 4096}}),
		"negative":             j.Begin(&Intent{Range: ranges.Range{Off: -4096, Len: 4096}}),
		"overflow":             j.Begin(&Intent{Range: ranges.Range{Off: 1<<63 - 4096, Len: 8192}}),
		"too many pages":       j.Begin(&Intent{Range: ranges.Range{Off: 0, Len: 257 * 4096}}),
		"image of two pages":   j.Begin(&Intent{Range: ranges.Range{Off: 0, Len: 8192}, Image: page}),
		"short image":          j.Begin(&Intent{Range: ranges.Page(0), Image: page[:100]}),
		"the second is bad":    j.Begin(full(), &Intent{}),
		"kept without a range": j.Keep(&Intent{}),
		"page number":          image(Image{Page: 1, Data: page}),
		"no data":              image(Image{Page: 0}),
		"page at the end":      image(Image{Page: 1<<63 - 4096, Data: page}),
		"punching nothing":     j.Punching(7, 1),
		"dropping nothing":     j.Drop(7),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	must(t, image(Image{Data: page, Missing: []ranges.Range{ranges.Page(0)}}))
	if st := j.Stats(); st != (Stats{Bytes: headerSize}) {
		t.Errorf("refused calls left something: %+v", st)
	}
}
