package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/cmd/mendfs/scan"
	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ranges"
)

func TestMeterOnATerminal(t *testing.T) {
	var out strings.Builder
	m := newMeter(&out, true, func() (int64, error) { return 4 << 20, nil })
	m.last = time.Time{}
	m.at(scan.Progress{Bytes: 1 << 20, Files: 1, Bad: 4096})
	m.at(scan.Progress{Bytes: 2 << 20, Files: 2}) // too soon to be shown
	if got, want := out.String(), "\r[#######                       ]  25% 1.0 MiB read in 1 file, 4.0 KiB can't be read\x1b[K"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	m.end()
	if got := out.String(); !strings.HasSuffix(got, " 50% 2.0 MiB read in 2 files\x1b[K\n") {
		t.Errorf("at the end %q", got)
	}
}

func TestMeterElsewhere(t *testing.T) {
	var out strings.Builder
	m := newMeter(&out, false, func() (int64, error) {
		t.Error("the size was asked for, and is not shown")
		return 0, nil
	})
	m.at(scan.Progress{Bytes: 1 << 30, Files: 7})
	if out.Len() > 0 {
		t.Errorf("told at once: %q", out.String())
	}
	m.last = time.Time{}
	m.at(scan.Progress{Bytes: 3 << 29, Files: 8})
	if got, want := out.String(), "mendfs scan: 1.5 GiB read in 8 files\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// What is listed, and read or lost as well, is told once.
func TestScanTellsOnce(t *testing.T) {
	place := func(path, found string, off, n int64) control.Place {
		return control.Place{Use: "file", Path: path, Range: ranges.Range{Off: off, Len: n}, Found: []string{found}}
	}
	s := scanned{places: []control.Place{
		place("b", "badblocks", 512, 512), place("b", "badblocks", 8192, 512), {Use: "free", Range: ranges.Range{Len: 512}, Found: []string{"badblocks"}},
		place("b", "recovered", 512, 100), place("b", "recovered", 1024, 512), place("b", "read", 0, 3*4096), place("a", "read", 0, 4096),
	}}
	s.tidy()
	var got []string
	for _, p := range s.places {
		got = append(got, p.Path+p.Range.String()+strings.Join(p.Found, "+"))
	}
	want := "[0 +512)badblocks a[0 +4096)read b[512 +512)badblocks+recovered+read b[1024 +512)recovered b[4096 +4096)read b[8192 +512)badblocks+read"
	if strings.Join(got, " ") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// The JSON says itself whether it is all there is.
func TestScanJSONSaysIfComplete(t *testing.T) {
	for name, c := range map[string]struct {
		listed control.Scan
		err    error
		want   string
	}{
		"all":                    {control.Scan{Complete: true}, nil, `{"version":1,"complete":true,"scan":[]}`},
		"the list is full":       {control.Scan{}, nil, `{"version":1,"complete":false,"scan":[]}`},
		"a file was not asked":   {control.Scan{Complete: true, Skipped: 1, Why: "f: denied"}, nil, `{"version":1,"complete":false,"scan":[]}`},
		"a file can't be opened": {control.Scan{Complete: true}, errors.New("1 file could not be read"), `{"version":1,"complete":false,"scan":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			var s scanned
			var out, said strings.Builder
			s.add(c.listed, &said)
			s.note(c.err, &said)
			if err := s.print(true, &out, &said); err != nil || out.String() != c.want+"\n" {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
	}
}

// What an interrupted scan could not read is not forgotten by the one that goes on: the
// answer of both is not complete.
func TestScanThatGoesOnKnowsWhatWasSkipped(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cursor")
	open := func() (*scan.Cursor, *reading) {
		cursor, err := scan.OpenCursor(path, dir, "fs")
		if err != nil {
			t.Fatal(err)
		}
		r, err := newReading(cursor)
		if err != nil {
			t.Fatal(err)
		}
		return cursor, r
	}
	cursor, first := open()
	first.skip("f", unix.EACCES)
	first.bad(scan.Bad{Path: "g", Range: ranges.Range{Len: 4096}, Err: unix.EIO})
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	ended := make(chan error)
	go func() { // its thread ends with it
		ended <- (&scan.Scan{Root: dir, Cursor: cursor, Found: first.bad, Skip: first.skip, At: func(scan.Progress) {}}).Run(ctx)
	}()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	_, then := open()
	if then.Skipped != 1 || then.Why != "f: permission denied" || len(then.Found) != 1 || then.Found[0].Path != "g" {
		t.Errorf("it knows %+v", then.outcomes)
	}
}
