package storm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
	"github.com/mendfs/mendfs/tests/harness"
)

const (
	line    = ranges.LineSize
	readers = 10
)

// field is a directory of files in which every other line is bad, so that no two
// lost ranges are one.
type field struct {
	t       *testing.T
	m       *harness.Mount
	files   int
	perFile int      // bad lines
	want    [][]byte // what reading each gives
}

func (f field) name(i int) string { return fmt.Sprintf("%d/file-%d", i/1000, i) }

// good is what a file held, left what is left of it.
func (f field) good(i int) []byte { return harness.Pattern(uint64(i), 2*f.perFile*line) }

func (f field) left(i int) []byte {
	data := f.good(i)
	for n := range f.perFile {
		clear(data[2*n*line:][:line])
	}
	return data
}

func (f field) lost() *ranges.Set {
	lost := ranges.Of()
	for n := range f.perFile {
		lost.Add(ranges.Range{Off: int64(2 * n * line), Len: line})
	}
	return lost
}

// newField makes the files and mounts them, with poison that is known from the
// beginning. That goes into the simulator's list directly: 1,000,000 orders to
// inject would take longer than the test.
func newField(t *testing.T, files, perFile int) field {
	t.Helper()
	f := field{t: t, files: files, perFile: perFile}
	f.m = harness.New(t, harness.Config{Flags: []string{"--simulate", "line"}})
	f.m.Stop()
	list, err := os.Create(filepath.Join(f.m.State, "poison.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	out := json.NewEncoder(list)
	write := func(record map[string]any) {
		t.Helper()
		if err := out.Encode(record); err != nil {
			t.Fatal(err)
		}
	}
	write(map[string]any{"op": "start", "version": 1, "id": files + 1})
	bad := f.lost().Slice()
	for i := range files {
		path := f.m.Below(f.name(i))
		if i%1000 == 0 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		f.want = append(f.want, f.left(i))
		if err := os.WriteFile(path, f.good(i), 0o644); err != nil {
			t.Fatal(err)
		}
		write(map[string]any{"op": "inject", "id": i + 1, "path": f.name(i), "file": identity(t, path),
			"range": ranges.Range{Len: int64(2 * perFile * line)}, "left": bad, "known": true})
	}
	if err := list.Close(); err != nil {
		t.Fatal(err)
	}
	f.m.Start()
	return f
}

func identity(t *testing.T, path string) fileid.ID {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	id, err := fileid.Of(fd)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// scan has ten readers read all files, each from another place on.
func (f field) scan() {
	f.t.Helper()
	var all sync.WaitGroup
	for r := range readers {
		all.Go(func() {
			for n := range f.files {
				f.read((n + r*f.files/readers) % f.files)
			}
		})
	}
	all.Wait()
}

func (f field) read(i int) {
	got, err := os.ReadFile(f.m.Path(f.name(i)))
	if err != nil {
		f.t.Error(err)
		return
	}
	want := f.want[i]
	if !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		f.t.Errorf("%s: %d bytes, want %d; differs at %d", f.name(i), len(got), len(want), at)
	}
}

// checkLedger opens the ledger of a mount that has ended.
func (f field) checkLedger() {
	f.t.Helper()
	start := time.Now()
	l, err := ledger.View(filepath.Join(f.m.State, "ledger.db"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("the ledger is opened in %v", time.Since(start))
	want := f.lost().String()
	for i := range f.files {
		lost, reinit, err := l.Live(identity(f.t, f.m.Below(f.name(i))).Key())
		if err != nil || lost.String() != want || !reinit.Empty() {
			f.t.Errorf("%s: %d ranges lost, want %d; reinitialized %v; %v", f.name(i), lost.Count(), f.perFile, reinit, err)
		}
	}
	if err := l.Close(); err != nil {
		f.t.Error(err)
	}
}

// checkEvents checks that each lost line was told of once, or is in the count of
// those that were dropped.
func (f field) checkEvents() {
	f.t.Helper()
	files, err := filepath.Glob(filepath.Join(f.m.State, "events*.jsonl"))
	if err != nil {
		f.t.Fatal(err)
	}
	told, newest := map[event.Kind]int64{}, map[string]event.Event{}
	for _, name := range files {
		in, err := os.Open(name)
		if err != nil {
			f.t.Fatal(err)
		}
		for e, err := range event.Scan(in, time.Time{}) {
			if err != nil {
				f.t.Error(err)
			}
			if e.Count > newest[e.ID].Count {
				told[e.Event] += e.Count - newest[e.ID].Count
				newest[e.ID] = event.Event{Count: e.Count}
			}
		}
		in.Close()
	}
	want := int64(f.files * f.perFile)
	switch full := len(files) == 5; { // then older ones are gone
	case told[event.Lost] > want, !full && told[event.Lost]+told[event.Dropped] < want:
		f.t.Errorf("events: %v; want %d lost, less those dropped", told, want)
	}
	f.t.Logf("%d event files: %v", len(files), told)
}

// A line in two of a file, or of many, is bad, and ten readers meet that at once.
//
// The simulated poison itself takes memory in the same process, which is not
// counted; what the collector lets grow on account of it is.
func TestStorm(t *testing.T) {
	const (
		base   = 64 << 20
		aRange = 100
	)
	plain(t)
	for _, files := range []int{1, 10_000} {
		t.Run(fmt.Sprint(files, " files"), func(t *testing.T) {
			f := newField(t, files, lines()/files)
			pid := f.m.Pid()
			before := resting(t, pid)
			stop := watch(t, pid)
			start := time.Now()
			f.scan()
			took := time.Since(start)
			peak := stop()
			after := resting(t, pid)
			t.Logf("%d lines in %d files met by %d readers in %v: RssAnon %d MiB before, up to %d, %d afterwards",
				lines(), files, readers, took, before>>20, peak>>20, after>>20)
			if most := int64(base + aRange*lines()); peak-before > most {
				t.Errorf("the storm took %d MiB, want at most %d", (peak-before)>>20, most>>20)
			}
			for i := range files { // known by now
				f.read(i)
			}
			f.m.Stop()
			f.checkLedger()
			f.checkEvents()
		})
	}
}
