package state

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/recovery/journal"
	"github.com/mendfs/mendfs/tests/harness"
)

// The state disk has lost two images. All others are exported, those are named with
// the reason, and the exit status says that not all worked.
func TestExportWithUnreadableImages(t *testing.T) {
	m, _, _ := scene(t)
	loseImages(t, m)
	want := []string{"f [4096 +4096) (refused): ", "other [0 +4096) (salvaged): ", "could not give back", "2 images can't be read"}
	checkPartial(t, want, 2, "--state", m.State)
	if r := harness.Mendfs(t, "lost", "--pending", "--state", m.State); r.Exit != exitLossLeft || !strings.Contains(r.Stdout, "unreadable") {
		t.Errorf("lost --pending: %+v", r)
	}
	m.Start() // which finds that the page of f is well, and needs no image of it
	checkPartial(t, []string{"other [0 +4096) (salvaged): ", "1 image can't be read"}, 1, m.At)
}

// loseImages has the journal compacted when the images of the pages of other and, refused
// by the medium, of the second of f can't be read.
func loseImages(t *testing.T, m *harness.Mount) {
	t.Helper()
	salvaged := func(name string) []byte {
		data := []byte(read(t, m.Below(name)))[:page]
		clear(data[:sector])
		return data
	}
	refused := harness.Pattern(9, page)
	inJournal(t, m, func(j *journal.Journal) error {
		f := identity(t, m.Below("f"))
		if err := j.SaveImage(f, "f", journal.Image{Page: page, Data: refused, Pending: true}); err != nil {
			return err
		}
		spoil(t, filepath.Join(m.State, "journal"), salvaged("other"), refused)
		// The one of f's first page, which is the same as other's, is saved anew.
		im := journal.Image{Data: salvaged("f"), Missing: []rng{{Off: 0, Len: sector}}}
		for range 20 << 20 / page { // more than what a checkpoint lets be
			if err := j.SaveImage(f, "f", im); err != nil {
				return err
			}
		}
		_, err := j.Checkpoint()
		if unread := j.TakeUnread(); len(unread) != 2 {
			t.Fatalf("unreadable: %+v", unread)
		}
		return err
	})
}

// spoil changes a byte of the given contents wherever a file has them.
func spoil(t *testing.T, path string, contents ...[]byte) {
	t.Helper()
	all := []byte(read(t, path))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, content := range contents {
		found := 0
		for at := bytes.Index(all, content); at >= 0; at = bytes.Index(all, content) {
			all[at+page/2] ^= 1
			if _, err := f.WriteAt(all[at+page/2:][:1], int64(at+page/2)); err != nil {
				t.Fatal(err)
			}
			found++
		}
		if found == 0 {
			t.Fatalf("%d bytes are not in %s", len(content), path)
		}
	}
}

// checkPartial checks an export of two images, f's, that lacks others.
func checkPartial(t *testing.T, words []string, unread int, flags ...string) {
	t.Helper()
	dir := filepath.Join(harness.Dir(t), "out")
	r := harness.Mendfs(t, append([]string{"lost", "--export", dir}, flags...)...)
	if r.Exit != exitOperational {
		t.Errorf("exit %d: %+v", r.Exit, r)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("%q is not in what is said: %s", w, r.Stderr)
		}
	}
	var out struct {
		Images []image
		Unread []struct {
			Why, Path, Error string
			Offset, Length   int64
		}
	}
	if err := json.Unmarshal([]byte(read(t, dir+"/manifest.json")), &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Images) != 2 || len(out.Unread) != unread {
		t.Fatalf("the manifest: %+v", out)
	}
	for _, im := range out.Images {
		if im.Path != "f" || int64(len(read(t, filepath.Join(dir, im.Name)))) != im.Length {
			t.Errorf("exported: %+v", im)
		}
	}
	for _, u := range out.Unread {
		if u.Error == "" || u.Length != page || u.Path == "f" && u.Offset != page {
			t.Errorf("unread: %+v", u)
		}
	}
}
