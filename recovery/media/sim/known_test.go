package sim

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Known is what a kernel would list: nothing latent before it was met, whole
// sectors, and nothing that was cleared.
func TestKnown(t *testing.T) {
	b := newBench(t, DAX, 4*page)
	listed := func() []ranges.Range {
		t.Helper()
		switch all := b.m.Known(); len(all) {
		case 0:
			return nil
		case 1:
			if all[0].File.Key() != b.id.Key() {
				t.Fatalf("known of %v", all[0].File)
			}
			return all[0].Listed
		default:
			t.Fatalf("known: %v", all)
			return nil
		}
	}
	want := func(when string, rs ...ranges.Range) {
		t.Helper()
		if got := listed(); !slices.Equal(got, rs) {
			t.Errorf("%s: %v, want %v", when, got, rs)
		}
	}
	want("before")
	b.inject(page+64, 64, false)
	b.inject(3*page, 64, true)
	want("with one of two known", ranges.Range{Off: page, Len: 512})
	b.wantRead(3*page, page, 0, unix.EFAULT)
	want("after the latent one was met", ranges.Range{Off: page, Len: 512}, ranges.Range{Off: 3 * page, Len: 512})
	if n, err := b.f.Pwrite(make([]byte, page), page, 0); n != page || err != nil {
		t.Fatal(n, err)
	}
	want("after a write has cleared one", ranges.Range{Off: 3 * page, Len: 512})
	other := b.inject(3*page+2048, 64, false)
	want("with one more", ranges.Range{Off: 3 * page, Len: 512}, ranges.Range{Off: 3*page + 2048, Len: 512})
	if err := b.m.Remove(other.ID); err != nil {
		t.Fatal(err)
	}
	want("after that was taken back", ranges.Range{Off: 3 * page, Len: 512})
}

// The poison of a removed file is forgotten while the medium runs, and by the next one
// that has the store.
func TestKnownOfRemovedFile(t *testing.T) {
	for name, forget := range map[string]func(*bench){
		"running": func(b *bench) { b.m.ForgetGone() },
		"anew": func(b *bench) {
			if err := os.WriteFile(b.os.Name(), nil, 0o600); err != nil { // another file of that name
				t.Fatal(err)
			}
			b.restart(DAX)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, DAX, 4*page)
			b.inject(page, 64, false)
			if err := errors.Join(b.os.Close(), os.Remove(b.os.Name())); err != nil {
				t.Fatal(err)
			}
			if !fileid.Gone(b.m.root, b.id, "") {
				t.Skip("whether a file is gone is not known here: that takes handles, and root")
			}
			forget(b)
			if known := b.m.Known(); len(known) != 0 {
				t.Errorf("known: %v", known)
			}
		})
	}
}
