package outage

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/tests/harness"
)

// One request meets two bad pages that are on nobody's list: with --breaker 1
// that is a failing device, with 2 it is poison.
func TestBreaker(t *testing.T) {
	for pages, want := range map[string]error{"1": unix.EIO, "2": nil} {
		t.Run(pages, func(t *testing.T) {
			b := harness.NewBadMedia(t)
			data := b.File("f", 1, 16*page)
			bad := harness.Range{Off: 4 * page, Len: 2 * page}
			b.Bad("f", bad)
			m := harness.New(t, harness.Config{Backing: b.At, Flags: []string{"--breaker", pages}})
			f, err := os.OpenFile(m.Path("f"), os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got := make([]byte, 2*page)
			if _, err := f.ReadAt(got, bad.Off); !errors.Is(err, want) {
				t.Fatalf("reading two bad pages: %v, want %v", err, want)
			}
			lost := m.Lost(".")
			if want != nil {
				if len(lost) > 0 {
					t.Errorf("the ledger has %v", lost)
				}
				return
			}
			if len(lost) == 0 || !bytes.Equal(got, make([]byte, 2*page)) || bytes.Equal(got, data[bad.Off:bad.End()]) {
				t.Errorf("the pages are not given up: the ledger has %v", lost)
			}
		})
	}
}
