package fs

import (
	"testing"

	"github.com/mendfs/mendfs/recovery/ranges"
)

var (
	firstPage  = ranges.Range{Off: 0, Len: 4096}
	within     = ranges.Range{Off: 100, Len: 50}
	secondPage = ranges.Range{Off: 4096, Len: 4096}
)

// A READ that comes while a WRITE of the same page is under way sees it.
func TestReadWaitsForWrite(t *testing.T) {
	n := &inode{}
	c := n.crossing()
	c.start(within)
	c.start(secondPage)
	written := false // guarded by c.mu, of start and end
	read := make(chan bool)
	go n.uncrossed(firstPage, func() { read <- written }) // ends with the read
	select {
	case <-read:
		t.Fatal("the READ did not wait")
	default:
	}
	written = true
	c.end(within)
	if !<-read {
		t.Error("the READ did not see the WRITE")
	}
	c.end(secondPage)
}

// A READ that a WRITE of the same page crosses is done again, after it.
func TestReadCrossedByWriteIsRepeated(t *testing.T) {
	for _, fresh := range []bool{true, false} { // the file's first write is special
		n := &inode{}
		if !fresh {
			n.crossing()
		}
		reads := 0
		n.uncrossed(firstPage, func() {
			if reads++; reads == 1 {
				c := n.crossing()
				c.start(within)
				c.end(within)
			}
		})
		if reads != 2 {
			t.Errorf("no write before %t: %d reads, want 2", fresh, reads)
		}
	}
}

func TestReadBesideWriteIsDoneOnce(t *testing.T) {
	n := &inode{}
	c := n.crossing()
	c.start(secondPage)
	reads := 0
	n.uncrossed(firstPage, func() {
		reads++
		c.start(secondPage)
		c.end(secondPage)
	})
	c.end(secondPage)
	if reads != 1 || len(c.reads)+len(c.writes) != 0 {
		t.Errorf("%d reads, want 1; left %v %v", reads, c.reads, c.writes)
	}
}

// Writes that never end crossing a READ do not keep it for ever.
func TestReadEnds(t *testing.T) {
	n := &inode{}
	c := n.crossing()
	reads := 0
	n.uncrossed(firstPage, func() {
		reads++
		c.start(within)
		c.end(within)
	})
	if reads != crossings {
		t.Errorf("%d reads, want %d", reads, crossings)
	}
}
