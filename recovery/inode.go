package recovery

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// Inode is what the engine knows of one backing file while somebody uses it.
// There must be at most one Inode for a backing file at a time.
type Inode struct {
	engine *Engine
	seq    uint64
	// mu is held shared by ordinary I/O, exclusively (lock) by repair.
	mu     sync.RWMutex
	epoch  atomic.Uint64          // odd while mu is held exclusively
	damage atomic.Pointer[damage] // nil: nothing is known, the clean path
	writes atomic.Uint64          // counts changes of the file's content, each before its lock is let go

	sharers atomic.Int64 // Shares in force; it rises under mu only
	shares  uint64       // Shares ever; guarded by mu
}

// lock takes the inode exclusively: no I/O is under way and none begins, and
// reads that go without the lock find out (File.Read).
func (i *Inode) lock() {
	i.mu.Lock()
	i.epoch.Add(1)
}

func (i *Inode) unlock() {
	i.epoch.Add(1)
	i.mu.Unlock()
}

// everything is all bytes that a file can have.
func everything() ranges.Range { return ranges.Between(0, math.MaxInt64) }

// changed says that the content of r was changed, before the lock is let go.
func (i *Inode) changed(r ranges.Range) {
	i.writes.Add(1)
	if d := i.damage.Load(); d != nil {
		d.letGo(r)
	}
}

// Damaged reports whether anything is known against the file: bad pages, bytes
// lost or reinitialized, kept images, repairs that could not be finished. For a
// file of which nothing was ever known it is one atomic load.
func (i *Inode) Damaged() bool {
	d := i.damage.Load()
	return d != nil && d.any()
}

// Share says that from now on the kernel may write the file behind the
// engine's back (passthrough, a shared mapping of the backing file), until
// unshare is called. Shares are counted; Share waits for a repair that is under
// way. While one is in force no page is rewritten with content that the engine
// has read or kept, which could be older than the kernel's, and no size is set
// back: what would need that (a write or truncate of a part of a bad page, the
// end of a repair) fails with a *RepairError, step "share". Writes that cover
// bad pages whole go through, and so do truncates and punches of whole pages;
// known-bad pages are asked again each time.
func (i *Inode) Share() (unshare func()) {
	i.lock()
	defer i.unlock()
	if d := i.damage.Load(); d != nil {
		_ = i.engine.endClosing(d.key, everything()) // whoever writes there through us gets the error
	}
	i.shares++
	i.sharers.Add(1)
	return sync.OnceFunc(func() { i.sharers.Add(-1) })
}

// isShared is constant from unshared to shared while mu is held.
func (i *Inode) isShared() bool { return i.sharers.Load() > 0 }

// NewInode makes the Inode of the file open at fd; O_PATH will do, and fd is
// used during the call only. It costs nothing as long as nothing was ever lost
// on this mount.
func (e *Engine) NewInode(fd int) *Inode {
	i := &Inode{engine: e, seq: e.sequence.Add(1)}
	if !e.Ledger.Any() && !e.Journal.HasImages() && e.pins.Load() == 0 && e.lists.Load() == 0 && e.closings.n.Load() == 0 {
		return i
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return i // asked again when the file meets trouble
	}
	if pinned := e.pinned(id.Key()); pinned != nil {
		return pinned
	}
	listed := e.listedPages(id.Key())
	if e.Ledger.Has(id.Key()) || !e.Journal.Pages(id.Key()).Empty() || !listed.Empty() || e.isClosing(id.Key(), everything()) {
		if d, err := i.know(id); err == nil { // on error the medium is asked, as for a file never seen
			d.suspect(listed)
		}
	}
	return i
}

// know returns the inode's damage, loading what ledger and journal have.
func (i *Inode) know(id fileid.ID) (*damage, error) {
	if d := i.damage.Load(); d != nil {
		return d, nil
	}
	d := &damage{id: id, key: id.Key(), ledger: i.engine.Ledger}
	d.blank = !i.engine.Ledger.Has(d.key) && !i.engine.isClosing(d.key, everything())
	if d.ledger.Has(d.key) {
		if err := d.ledger.Load(d.key); err != nil {
			return nil, fmt.Errorf("asking the ledger: %w", err)
		}
	}
	d.loadImages(i.engine.Journal)
	for _, in := range i.engine.Journal.Intents() { // those that replay had to leave open
		if in.File.Key() == d.key && in.Image != nil {
			d.leaveUnclosed(in.Range, in.ID)
		}
	}
	if !i.damage.CompareAndSwap(nil, d) {
		return i.damage.Load(), nil
	}
	i.engine.remember(i, d.key)
	return d, nil
}

// TakeChanged is the pages that hold something else, since the last call, than
// readers may have been told, though no request of an application says so: bytes
// that a repair made zero, which a cache may have from before they were lost, or
// bytes that are there again. Whoever caches pages of the file has to drop those.
func (i *Inode) TakeChanged() []ranges.Range {
	d := i.damage.Load()
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := d.changed.Slice()
	d.changed = ranges.Set{}
	return changed
}

// dropBlank puts the inode back on the clean path where its damage d came of a
// false alarm, such as a read at the end of the file that raced with an append.
// The caller holds the inode exclusively.
func (i *Inode) dropBlank(d *damage) {
	if d.isBlank() {
		i.damage.CompareAndSwap(d, nil)
	}
}

// View runs fn while no repair of the file is under way: what fn sees of sizes
// and times was never an intermediate state. fn asks for attributes: where that
// fails as a device does, it is an outage.
func (i *Inode) View(fn func() error) error {
	i.mu.RLock()
	defer i.mu.RUnlock()
	err := fn()
	if err != nil && (mayBePoison(err) || isGone(err)) {
		i.engine.tellOutage(event.Event{Event: event.Outage, FS: i.engine.FS, Source: i.engine.Medium.Source()}, err)
	}
	return err
}
