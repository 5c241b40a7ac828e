package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/mount/control"
	"github.com/mendfs/mendfs/recovery/ledger"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// readBytes compares what a read gave with what it may give: what was last
// written, or zero where poison hit.
func (c *content) readBytes(off int64, got []byte) error {
	want := c.data[min(off, c.size()):]
	if len(got) > len(want) {
		return fmt.Errorf("%d bytes at %d, and the file has %d", len(got), off, c.size())
	}
	for i, b := range got {
		if b != want[i] && (b != 0 || !c.hurt.Overlaps(ranges.Range{Off: off + int64(i), Len: 1})) {
			return fmt.Errorf("byte %d reads %#x, want %#x; lost may be %v there", off+int64(i), b, want[i], around(c.hurt, off+int64(i)))
		}
	}
	return nil
}

func around(s *ranges.Set, at int64) []ranges.Range {
	return slices.Collect(s.Within(ranges.Range{Off: max(0, at-1024), Len: 2048}))
}

// live are the ledger's rows of bytes without content.
type live struct {
	all  *ranges.Set // lost and reinitialized
	lost *ranges.Set
}

func liveOf(rows []ledger.Row) live {
	l := live{all: ranges.Of(), lost: ranges.Of()}
	for _, row := range rows {
		if row.State.Live() {
			l.all.Add(row.Range)
		}
		if row.State == ledger.Lost {
			l.lost.Add(row.Range)
		}
	}
	return l
}

// settle compares the whole file, as the medium has it, with the ledger:
// each byte is what was last written, or zero and in the ledger, and then poison
// hit it. From then on just those bytes are lost.
func (c *content) settle(got []byte, l live) error {
	if int64(len(got)) != c.size() {
		return fmt.Errorf("%d bytes, want %d", len(got), c.size())
	}
	for _, r := range l.all.Slice() {
		allowed := ranges.Of(append(c.hurt.Slice(), c.stale.Slice()...)...)
		if !allowed.Contains(r) {
			return fmt.Errorf("the ledger has %v, and of that may be lost only %v", r, slices.Collect(allowed.Within(r)))
		}
	}
	for i, b := range got {
		at := ranges.Range{Off: int64(i), Len: 1}
		inLedger, hurt := l.all.Overlaps(at), c.hurt.Overlaps(at)
		switch {
		case !inLedger && b == 0 && hurt && c.unsaid.Overlaps(at):
			c.data[i] = 0 // a known limit: the zeros of a copy were there before their row
			c.forgotten++
		case !inLedger && b != c.data[i]:
			return fmt.Errorf("byte %d is %#x, want %#x, and the ledger does not have it; poison hit %v", i, b, c.data[i], around(c.hurt, at.Off))
		case inLedger && hurt && b != 0 && !c.stale.Overlaps(at):
			return fmt.Errorf("byte %d is in the ledger and is %#x (written was %#x)", i, b, c.data[i])
		case inLedger && b != c.data[i] && b != 0:
			return fmt.Errorf("byte %d is in the ledger, and %#x is not what was written (%#x)", i, b, c.data[i])
		case inLedger && !hurt && b != c.data[i]:
			return fmt.Errorf("byte %d is zero, want %#x, and no poison hit it since it was written", i, c.data[i])
		}
	}
	c.unsaid = ranges.Of()
	c.now(l)
	return nil
}

// now takes what the ledger has for what is lost.
func (c *content) now(l live) {
	for _, r := range c.hurt.Slice() {
		for gap := range l.all.Gaps(r) {
			c.hurt.Remove(gap)
		}
	}
	for _, r := range c.stale.Slice() {
		for gap := range l.all.Gaps(r) {
			c.stale.Remove(gap)
		}
	}
}

// checkFile checks one file: its content through the page cache and past it,
// the ledger, the size and the number of links.
func (w *worker) checkFile(name string) error {
	f := w.oracle.files[name]
	for side, where := range map[string]*world{"mount": w.mount, "bare": w.bare} {
		if err := where.checkStat(name, f); err != nil {
			return fmt.Errorf("%s: %w", side, err)
		}
	}
	if err := w.bare.expect(name, f.data); err != nil {
		return fmt.Errorf("the oracle is wrong: %w", err)
	}
	cached := w.mount.perform(op{Verb: read, Name: name, Range: ranges.Range{Len: f.size() + 1}})
	if cached.err != nil || cached.n != f.size() {
		return fmt.Errorf("a read of all gave %d of %d bytes: %w", cached.n, f.size(), orNil(cached.err))
	}
	if err := f.readBytes(0, cached.data); err != nil {
		return fmt.Errorf("through the page cache: %w", err)
	}
	if name[0] == '!' {
		return nil // the ledger is asked by name
	}
	direct := w.mount.perform(op{Verb: directRead, Name: name, Range: ranges.Range{Len: f.size() + 1}.Widen(ranges.PageSize)})
	if direct.err != nil {
		return fmt.Errorf("reading with O_DIRECT: %w", direct.err)
	}
	f.met(f.whole())
	rows, err := w.control().Lost(context.Background(), control.LostQuery{Path: w.rel + "/" + name})
	if err != nil {
		return fmt.Errorf("asking the ledger: %w", err)
	}
	forgotten := f.forgotten
	if err := f.settle(direct.data, liveOf(rows)); err != nil || f.forgotten == forgotten {
		return err
	}
	return w.bare.become(name, f.data)
}

var errShort = errors.New("short")

func orNil(err error) error {
	if err == nil {
		return errShort
	}
	return err
}

// checkStat compares size and number of links.
func (w *world) checkStat(name string, f *content) error {
	fd, err := w.fd(name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if st.Size != f.size() || int(st.Nlink) != f.links {
		return fmt.Errorf("fstat: %d bytes and %d links, want %d and %d", st.Size, st.Nlink, f.size(), f.links)
	}
	return nil
}

// expect compares a file with what it has to hold, to the byte.
func (w *world) expect(name string, want []byte) error {
	got := w.perform(op{Verb: read, Name: name, Range: ranges.Range{Len: int64(len(want)) + 1}})
	if got.err != nil || !bytes.Equal(got.data, want) {
		return fmt.Errorf("%s: %d bytes, want %d, and they are the same: %t: %w", w.path(name), got.n, len(want), bytes.Equal(got.data, want), orNil(got.err))
	}
	return nil
}
