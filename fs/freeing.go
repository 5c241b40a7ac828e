package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery"
)

// Poison in files that go.
//
// Blocks that are freed with poison in them can be cleared by nobody, and where
// the device can't clear them at all, XFS shuts down when it allocates them again
// (lab facts). So what the kernel lists is cleared before a file loses its last
// name, as long as the answer can still be no, and what was listed since before its
// last descriptor is closed.

// freed is a file that may have no name, with its last descriptor, O_PATH.
type freed struct {
	fd  int
	rec *recovery.Inode // nil: nobody has read it
}

// letGo closes the descriptor, unless the file had better stay. It is called
// without the mutex, or when nobody else has the table any more.
func (t *table) letGo(file freed) {
	if t.freeing != nil && t.freeing(file) != nil {
		return // it stays open, and ends with this process
	}
	_ = unix.Close(file.fd) // O_PATH: there is nothing to lose
}

// clearFreed clears what is listed in a file without names.
func (f *FS) clearFreed(file freed) error {
	var st unix.Statx_t
	mayClear := f.engine.MustClear() || f.engine.AnyListed() // it costs no system call
	if !mayClear || f.config.ReadOnly || statx(file.fd, &st) != nil || st.Nlink > 0 || st.Size == 0 || !f.engine.AnyListed() {
		return nil
	}
	own, _, err := f.reopen(file.fd, unix.O_RDWR)
	if err != nil {
		return nil // nothing of it can be cleared, and it goes as it is
	}
	defer unix.Close(own)
	rec := file.rec
	if rec == nil {
		rec = f.engine.NewInode(own)
	}
	return f.engine.Open(rec, own).Free()
}

// prepareRemoval fails if the file of a name that is about to be removed must keep
// it.
func (f *FS) prepareRemoval(name removal, c *fuse.Caller) error {
	if !name.last || name.empty || !f.engine.MustClear() || !f.engine.AnyListed() {
		return nil
	}
	n := f.table.acquireFile(name.key)
	if n == nil {
		return nil
	}
	defer f.table.release(n)
	own, _, err := f.reopen(n.fd, unix.O_RDWR)
	if err != nil {
		return nil // an immutable file, say: it is the filesystem's to refuse
	}
	defer unix.Close(own)
	defer f.dropStale(n)
	return f.engine.Open(n.recovery(f.engine, own), own).PrepareRemoval(caller(c))
}

// acquireFile is acquire for the regular file k; nil if it is not known.
func (t *table) acquireFile(k key) *inode {
	t.mu.Lock()
	n := t.known(k)
	if n == nil || n.kind != unix.S_IFREG {
		t.unlock()
		return nil
	}
	id := n.id
	t.unlock()
	n, err := t.acquire(id)
	if err != nil {
		return nil
	}
	return n
}
