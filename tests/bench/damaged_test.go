package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ledger"
)

func TestRecordsAreRowsOfTheLedger(t *testing.T) {
	backing, path := t.TempDir(), filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(path, "test", fileid.ID{Ino: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := addFile(l, backing, "file"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = ledger.View(path); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	rows := 0
	for row, err := range l.All(false) {
		if err != nil {
			t.Fatal(err)
		}
		if row.Path != "file" || row.State != ledger.Lost {
			t.Fatalf("row %+v", row)
		}
		rows++
	}
	if rows*filesOfRecords != manyRecords {
		t.Errorf("a file has %d rows", rows)
	}
}

func TestCommitsCloseWhatTheyBegin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	d, err := commits(t.Context(), path, 4, 50*time.Millisecond)
	if err != nil || d.Ops < 4 {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the journal is left behind: %v", err)
	}
}

// A cost has the rate of the damaged work, and its speed against the clean one's
// within the rounds.
func TestCostSays(t *testing.T) {
	r := sampleReport()
	r.Damaged.sum()
	for i, want := range []struct{ rate, ratio number }{{512, 0.25}, {128, 0.5}, {1.5, 0.02}} {
		if got := r.Damaged.Costs[i]; got.Rate != want.rate || got.Ratio != want.ratio {
			t.Errorf("%s: %v %s, ratio %v", got.What, got.Rate, got.Unit, got.Ratio)
		}
	}
	if got := r.Damaged.Costs[3]; got.Rate != 2500 || !math.IsNaN(float64(got.Ratio)) {
		t.Errorf("%s has no clean work to be compared with: %v, %v", got.What, got.Rate, got.Ratio)
	}
}
