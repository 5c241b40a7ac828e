//go:build lab

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
	"github.com/mendfs/mendfs/tests/harness"
	"github.com/mendfs/mendfs/tests/lab/truth"
)

// neighbours is a write of several pages in one call, of which some are bad, next to each
// other and not.
type neighbours struct {
	size, at, length int64   // of the file; of the write
	bad              []int64 // sectors; the last lies behind the write
}

// TestCrashInWriteOfNeighbours kills the server at each step of a write that covers bad
// pages which are neighbours. After the next mount each page is the old one or the new one,
// and its sector is off the kernel's list if it is the new one.
func TestCrashInWriteOfNeighbours(t *testing.T) {
	w := neighbours{size: 24 * page, at: 4 * page, length: 8 * page, bad: []int64{4*8 + 1, 5 * 8, 6*8 + 7, 8 * 8, 8*8 + 3, 11*8 + 7, 20 * 8}}
	const good, all = 3, 8 // pages of the write: the good ones are written first
	steps := [][]struct {
		step   failpoint.Step
		nth    int
		new    int // pages; -1: any
		listed int // sectors that are listed afterwards
	}{
		{{failpoint.IntentDurable, 1, good, len(w.bad)}, {failpoint.PagesWritten, 1, all, 1}},
		{{failpoint.PageCleared, 2, -1, -1}, {failpoint.PagesDurable, 1, all, 1}},
	}
	for i, fs := range filesystems[:2] {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, fs)
			for _, s := range steps[i] {
				t.Run(string(s.step), func(t *testing.T) {
					written, listed := w.crash(t, d, fmt.Sprintf("%s:%d", s.step, s.nth), nil)
					if s.new >= 0 && (written != s.new || listed != s.listed) {
						t.Errorf("%d pages are new, want %d; %d sectors are listed, want %d", written, s.new, listed, s.listed)
					}
				})
			}
		})
	}
}

// TestKillInWriteOfNeighbours kills the server while the kernel copies and clears.
func TestKillInWriteOfNeighbours(t *testing.T) {
	w := neighbours{size: 68 * page, at: 2 * page, length: 64 * page}
	for p := int64(2); p < 66; p++ {
		w.bad = append(w.bad, p*8+p%8)
	}
	w.bad = append(w.bad, 67*8)
	seed := uint64(time.Now().UnixNano())
	part := rand.New(rand.NewPCG(seed, 1)).Float64()
	for _, fs := range filesystems[:2] {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t, fs)
			written, listed := w.crash(t, d, "", func(m *harness.Mount, took time.Duration) {
				time.Sleep(time.Duration(part * float64(took)))
				m.Kill()
			})
			t.Logf("seed %d: %d pages are new, %d sectors are listed", seed, written, listed)
		})
	}
}

// crash writes, dies at the failpoint or by kill meanwhile, and mounts again. It returns how
// many pages of the write are new, and how many sectors are listed. kill is told how long such
// a write takes.
func (w neighbours) crash(t *testing.T, d *disk, at string, kill func(*harness.Mount, time.Duration)) (written, listed int) {
	t.Helper()
	content := truth.Content(w.size)
	path, twin := d.fill(t, "file", content), d.fill(t, "twin", content)
	defer os.Remove(path)
	defer d.clearDevice(t)
	d.poison(t, path, w.bad...)
	var env []string
	if kill == nil {
		env = []string{"MENDFS_FAILPOINT=" + at}
	} else {
		d.poison(t, twin, w.bad...)
	}
	m := harness.New(t, harness.Config{Backing: d.at, Env: env})
	fresh := bytes.Repeat([]byte("new!"), int(w.length/4))
	if kill != nil {
		began := time.Now()
		if err := w.write(m.Path("twin"), fresh); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		ended := make(chan error, 1)
		go func() { ended <- w.write(m.Path("file"), fresh) }() // ends with the write
		kill(m, took)
		<-ended // either way: it may have been faster
	} else {
		if _, err := os.ReadFile(m.Path("file")); err != nil { // or the kernel would clear what nobody knows of, without a repair
			t.Fatal(err)
		}
		_ = w.write(m.Path("file"), fresh) // of a server that dies, or ends the repair later
		m.Kill()
	}
	run(t, "rm", "-f", twin)
	m = harness.New(t, harness.Config{Backing: d.at, At: m.At, State: m.State})
	defer m.Stop()
	got, err := os.ReadFile(m.Path("file"))
	if err != nil || int64(len(got)) != w.size {
		t.Fatalf("after replay: %d bytes of %d: %v", len(got), w.size, err)
	}
	left := d.bad(t, path)
	for p := int64(0); p < w.size; p += page {
		old := bytes.Clone(content[p : p+page])
		for _, s := range w.bad {
			if off := s*sector - p; off >= 0 && off < page {
				clear(old[off : off+sector])
			}
		}
		in := p >= w.at && p < w.at+w.length
		isListed := slices.ContainsFunc(left, func(s int64) bool { return s*sector >= p && s*sector < p+page })
		switch now := got[p : p+page]; {
		case in && bytes.Equal(now, fresh[p-w.at:][:page]):
			written++
			if isListed {
				t.Errorf("page %d is new and still listed", p/page)
			}
		case !bytes.Equal(now, old):
			t.Errorf("page %d is neither the old nor the new: differs at %d", p/page, firstDifference(now, old))
		}
	}
	checkEvents(t, m)
	return written, len(left)
}

func (w neighbours) write(path string, fresh []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(fresh, w.at)
	return errors.Join(err, f.Close())
}
