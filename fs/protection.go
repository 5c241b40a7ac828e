package fs

import (
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// Protection is what the kernel serves by itself at the moment.
type Protection struct {
	Passthrough int    // inodes that are open so
	Refused     uint64 // opens that the kernel would not take, served by us
	Unprotected []Unprotected
}

// Unprotected is a file with known poison of which the kernel serves more than
// it would if it were opened now: its programs have to open it again.
type Unprotected struct {
	Path  string // below the root
	Opens int    // in plain passthrough; 0: only a mapping may be left
}

// Protection may be called at any time.
func (f *FS) Protection() Protection {
	report := Protection{Refused: f.refused.Load()}
	for _, id := range f.table.passed() {
		n, err := f.table.acquire(id)
		if err != nil {
			continue // it is gone
		}
		f.protection(n, &report)
		f.table.release(n)
	}
	return report
}

func (f *FS) protection(n *inode, report *Protection) {
	p := n.passage()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode.passing() > 0 {
		report.Passthrough++
	}
	if f.config.Protect != ProtectKnown || !f.damaged(n, n.fd) {
		return
	}
	if p.mode.opens[through] > 0 || p.mode.passing() == 0 && p.mode.lingers && !f.settle(n, p) {
		report.Unprotected = append(report.Unprotected, Unprotected{fileid.Path(f.config.Root, n.fd), p.mode.opens[through]})
	}
}

// settle finds out whether a mapping is left of n, which is not open in
// passthrough.
func (f *FS) settle(n *inode, p *passage) (settled bool) {
	fd, err := f.openAs(n.fd, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	settled = p.mode.settle(func() bool { return f.unused(fd) })
	p.tell(n.rec.Load())
	return settled
}

// passed are the files that were ever opened in a mode with passthrough.
func (t *table) passed() []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []uint64
	for id, n := range t.byID {
		if n.passed.Load() != nil {
			ids = append(ids, id)
		}
	}
	return ids
}
