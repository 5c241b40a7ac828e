package recovery

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/media"
)

// Caller is who asked. The zero Caller is nobody known: the kernel's writeback
// has neither pid nor uid.
type Caller struct {
	Pid, UID uint32
	Known    bool
}

// claims is the uid whose claim to what is left of the filesystem's space a
// write for the caller has: media.As.
func (c Caller) claims() uint32 {
	if !c.Known {
		return media.Nobody
	}
	return c.UID
}

// File is one open of an Inode: the entry to the engine. All methods may be
// called concurrently; their errors become errnos by Errno.
type File struct {
	engine *Engine
	ino    *Inode
	below  media.File
}

// Open wraps the descriptor fd of ino's file. fd stays the caller's and must
// stay open while the File is used. A File whose fd can't read can't repair
// part of a page, one that can't write can't repair at all.
func (e *Engine) Open(ino *Inode, fd int) *File {
	return &File{engine: e, ino: ino, below: e.Medium.Open(fd)}
}

// know returns what is known of the file's damage, asking for the file's
// identity if this is its first trouble.
func (f *File) know() (*damage, error) {
	if d := f.ino.damage.Load(); d != nil {
		return d, nil
	}
	id, err := fileid.Of(f.below.Fd())
	if err != nil {
		return nil, fmt.Errorf("asking for the file's identity: %w", err)
	}
	return f.ino.know(id)
}

// path is the file's name below the backing directory now, for people.
func (f *File) path() string { return fileid.Path(f.engine.Root, f.below.Fd()) }

// appends reports whether every write goes to the end of the file, whatever its
// offset (man 2 pwrite, BUGS). So it is for an append-only file: nothing may be
// written twice, and no page rewritten.
func (f *File) appends() bool {
	flags, err := unix.FcntlInt(uintptr(f.below.Fd()), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_APPEND != 0
}

// Sync returns when the file's data, and the records that it implies, are
// durable: fdatasync(2) or, if full, fsync(2). The data comes first: a record
// must not say that zeros were replaced by what the power may take back. What waits
// for other files is not waited for.
func (f *File) Sync(full bool) error {
	if err := f.below.Sync(full); err != nil {
		return err
	}
	d := f.ino.damage.Load()
	if d == nil {
		return nil
	}
	if err := f.engine.Ledger.FlushFile(d.key); err != nil {
		return &RepairError{Step: "ledger", Err: err}
	}
	return nil
}

// Seek is lseek(2) for SEEK_DATA and SEEK_HOLE. It sees no hole that a repair has
// punched: a file with kept images, or with a repair under way that could not be
// finished, is taken to be all data.
func (f *File) Seek(off int64, whence int) (int64, error) {
	f.ino.mu.RLock()
	defer f.ino.mu.RUnlock()
	if d := f.ino.damage.Load(); d == nil || !d.mayHide() {
		return unix.Seek(f.below.Fd(), off, whence)
	}
	st, err := f.stat()
	switch {
	case err != nil:
		return 0, err
	case off < 0 || off >= st.Size:
		return 0, unix.ENXIO
	case whence == unix.SEEK_HOLE:
		return st.Size, nil
	}
	return off, nil
}
