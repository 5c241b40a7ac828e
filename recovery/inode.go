package recovery

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/fileid"
)

// Inode is what the engine knows of one backing file while somebody uses it.
// There must be at most one Inode for a backing file at a time.
type Inode struct {
	engine *Engine
	seq    uint64
	// mu is held shared by ordinary I/O, exclusively by repair.
	mu     sync.RWMutex
	damage atomic.Pointer[damage] // nil: nothing is known, the clean path
	writes atomic.Uint64          // counts changes of the file's content, each before its lock is let go
}

// NewInode makes the Inode of the file open at fd; O_PATH will do, and fd is
// used during the call only. It costs nothing as long as nothing was ever lost
// on this mount.
func (e *Engine) NewInode(fd int) *Inode {
	i := &Inode{engine: e, seq: e.sequence.Add(1)}
	if !e.Ledger.Any() && !e.Journal.HasImages() && e.pins.Load() == 0 {
		return i
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return i // asked again when the file meets trouble
	}
	if pinned := e.pinned(id.Key()); pinned != nil {
		return pinned
	}
	if e.Ledger.Has(id.Key()) || !e.Journal.Pages(id.Key()).Empty() {
		_, _ = i.know(id) // on error the medium is asked, as for a file never seen
	}
	return i
}

// know returns the inode's damage, loading what ledger and journal have.
func (i *Inode) know(id fileid.ID) (*damage, error) {
	if d := i.damage.Load(); d != nil {
		return d, nil
	}
	d := &damage{id: id, key: id.Key()}
	lost, reinit, err := i.engine.Ledger.Live(d.key)
	if err != nil {
		return nil, fmt.Errorf("asking the ledger: %w", err)
	}
	d.lost, d.reinit = lost, reinit
	if err := d.loadImages(i.engine.Journal); err != nil {
		return nil, err
	}
	if !i.damage.CompareAndSwap(nil, d) {
		return i.damage.Load(), nil
	}
	i.engine.remember(i, d.key)
	return d, nil
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
