package recovery

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/failpoint"
)

// TestWriteReturnsWhenTheJournalRefuses: a page of which nothing can be kept is
// not known after it was inspected; the write must fail and not look for ever.
func TestWriteReturnsWhenTheJournalRefuses(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	bad := rng(pg+512, 512)
	r.poison(bad, false)
	r.check(r.journal.Shutdown())
	returned := make(chan error, 1)
	go func() {
		_, err := r.file.Write([]byte("part"), pg, false, Caller{})
		returned <- err
	}()
	select {
	case err := <-returned:
		var refused *RepairError
		if !errors.As(err, &refused) || refused.Step != "journal" {
			t.Errorf("write: %v, want a refusal by the journal", err)
		}
	case <-time.After(30 * time.Second):
		panic("the write never returns") // it holds the inode: no cleanup can end
	}
	r.crash()
	r.start()
	wantBytes(t, "after the crash", r.read(0, 4*pg), without(pattern(4*pg), bad))
	r.wantRecorded(bad)
}

// TestWritebackOfTheTailPageAndCrash: most of a page written back nobody wrote.
// Zeros of ours in it have to be on record after replay as they were before.
func TestWritebackOfTheTailPageAndCrash(t *testing.T) {
	r := newRig(t, "dax", 3*pg+1000).start()
	bad := rng(3*pg, 512)
	r.poison(bad, false)
	b := r.read(3*pg, 1000)
	b[700] = 'x'
	crashed := r.crashAt(failpoint.PagesWritten, 1, func() {
		_, err := r.file.Write(b, 3*pg, true, Caller{})
		t.Errorf("the writeback ended: %v", err)
	})
	if !crashed {
		t.Fatal("no crash")
	}
	r.start()
	wantBytes(t, "after the crash", r.read(3*pg, 1000), b)
	r.wantRecorded(bad)
}

// TestWritebackOfAWholePageHasAnImage: nobody sends a writeback again after a
// power cut. A torn page of it can come back only from the intent.
func TestWritebackOfAWholePageHasAnImage(t *testing.T) {
	r := newRig(t, "dax", 4*pg).start()
	r.poison(rng(pg, 512), false)
	b := r.read(pg, pg)
	var begun bool
	r.onStep(func(at failpoint.Step) {
		if at != failpoint.IntentDurable {
			return
		}
		begun = true
		for _, in := range r.journal.Intents() {
			wantBytes(t, "the intent's image", in.Image, b)
		}
	})
	n, err := r.file.Write(b, pg, true, Caller{})
	r.onStep(nil)
	if n != pg || err != nil || !begun {
		t.Errorf("writeback = %d, %v; intent made: %v", n, err, begun)
	}
}

// TestShortWritebackIsAnError: the kernel takes a short count of a writeback for
// success, and the pages behind it would be gone without a word.
func TestShortWritebackIsAnError(t *testing.T) {
	r, m := foreign(t, 4*pg)
	r.check(m.Bad(r.fd, rng(pg+128, 64)))
	r.read(0, 4*pg)
	m.Refuse(unix.EFAULT)
	n, err := r.file.Write(pattern(2*pg), 0, true, Caller{})
	if n != 0 || err == nil {
		t.Errorf("writeback = %d, %v, want an error", n, err)
	}
	if n, err := r.file.Write(pattern(2*pg), 0, false, Caller{}); n != pg || err != nil {
		t.Errorf("write = %d, %v, want what is in front of the page", n, err)
	}
}
