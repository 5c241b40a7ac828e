package control

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/mendfs/mendfs/recovery/ledger"
)

// TestLostIsNeverInMemoryAsAWhole: rows are handed through the socket as they come.
func TestLostIsNeverInMemoryAsAWhole(t *testing.T) {
	b := &canned{rows: 200_000}
	if os.Getenv("MENDFS_FULL") == "1" {
		b.rows = 1_000_000
	}
	state, _ := serve(t, b)
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	base, most, n := s.HeapInuse, uint64(0), 0
	err := Dial(state).EachLost(context.Background(), LostQuery{}, func(r ledger.Row) error {
		if n++; n%10_000 == 0 {
			runtime.ReadMemStats(&s)
			most = max(most, s.HeapInuse)
		}
		if r != row {
			return errors.New("another row")
		}
		return nil
	})
	if err != nil || n != b.rows {
		t.Errorf("%d rows of %d: %v", n, b.rows, err)
	}
	if grew := int64(most) - int64(base); grew > 16<<20 {
		t.Errorf("%d rows took %d MiB", n, grew>>20)
	}
}

// TestLostThatBreaksOff: the ledger can't be read to its end. What was sent must not
// pass for all.
func TestLostThatBreaksOff(t *testing.T) {
	for _, rows := range []int{1, 5000} {
		b := &canned{rows: rows, late: errors.New("the state disk fails")}
		state, _ := serve(t, b)
		got, err := Dial(state).Lost(context.Background(), LostQuery{})
		var e *Error
		if !errors.As(err, &e) || e.Exit != ExitOperational || got != nil {
			t.Errorf("%d rows: %d came, %v", rows, len(got), err)
		}
	}
	state, _ := serve(t, &canned{rows: 5000})
	stop := errors.New("enough")
	n := 0
	err := Dial(state).EachLost(context.Background(), LostQuery{}, func(ledger.Row) error {
		if n++; n == 10 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 10 {
		t.Errorf("stopped after 10 rows: %d, %v", n, err)
	}
}
