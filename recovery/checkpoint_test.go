//go:build failpoints

package recovery

import (
	"testing"
	"time"

	"github.com/mendfs/mendfs/recovery/failpoint"
)

// TestNobodyWaitsForACheckpoint: repairs go on, in the same file, while a checkpoint is
// under way, however long that takes; Close waits for it.
func TestNobodyWaitsForACheckpoint(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	hung, begun := make(chan struct{}), make(chan struct{})
	checkpoints := 0
	r.onStep(func(at failpoint.Step) {
		if at != failpoint.LedgerCheckpoint {
			return
		}
		if checkpoints++; checkpoints == 1 {
			close(begun)
			<-hung
		}
	})
	r.engine.closes.Store(1023)
	repair := func() {
		r.poison(rng(pg, 64), false)
		r.write(pg+100, []byte("part"))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		repair() // begins it
		<-begun
		r.engine.closes.Store(2047)
		repair() // would begin another
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("a repair waits for the checkpoint")
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		r.engine.checkpoints.end()
	}()
	select {
	case <-closed:
		t.Error("the engine ends before the checkpoint does")
	case <-time.After(50 * time.Millisecond): // can't be longer than it takes
	}
	close(hung)
	<-done
	<-closed
	if checkpoints != 1 {
		t.Errorf("%d checkpoints at once", checkpoints)
	}
	r.onStep(nil)
	r.remount()
}
