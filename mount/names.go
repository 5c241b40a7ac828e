package mount

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// scope decides for one question which files it is about. Files are told by
// identity, so that renames and hard links change nothing; name is one that the
// file has now, as far as that can be found out, else the one it had when it
// was last seen.
type scope func(id fileid.ID, seen string) (name string, in bool)

// seenFile is a file in the records, and its path when it was last seen.
type seenFile struct {
	id   fileid.ID
	path string
}

// scope is what the question about path, relative to the root, is about: the
// file that has the name now, or all files at and below the directory. If
// nothing has the name any more, it is those files that had it. recorded is the
// files that it will be asked about.
func (r *records) scope(ctx context.Context, path string, recorded iter.Seq2[seenFile, error]) (scope, error) {
	path = filepath.Clean("/" + path)[1:]
	switch {
	case path == "":
		return func(id fileid.ID, seen string) (string, bool) { return r.nameNow(id, seen), true }, nil
	case r.within < 0:
		return seenBelow(path), r.remembered(path, recorded)
	}
	fd, err := openBeneath(r.within, path, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return seenBelow(path), r.remembered(path, recorded)
	}
	if err != nil {
		return nil, failed(err, "give a file or a directory of the mount, not a symbolic link", "%s can't be looked up", path)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.below(ctx, path, recorded)
	}
	id, err := fileid.Of(fd)
	if err != nil {
		return nil, err
	}
	key := id.Key() // the same for all its hard links
	return func(id fileid.ID, _ string) (string, bool) { return path, id.Key() == key }, nil
}

// seenBelow goes by the names that files had when they were last seen.
func seenBelow(path string) scope {
	return func(_ fileid.ID, seen string) (string, bool) {
		return seen, seen == path || strings.HasPrefix(seen, path+"/")
	}
}

// remembered fails unless a record, history or not, has the path: a name that
// is misspelt must not look clean.
func (r *records) remembered(path string, recorded iter.Seq2[seenFile, error]) error {
	in := seenBelow(path)
	for _, files := range []iter.Seq2[seenFile, error]{recorded, r.everLost} {
		for f, err := range files {
			if err != nil {
				return err
			}
			if _, ok := in(f.id, f.path); ok {
				return nil
			}
		}
	}
	if r.within < 0 {
		return usage("ask again when the directory is there, or leave the path out for all files",
			"%q is in no record, and the backing directory is not there, or covered", path)
	}
	return usage("give its path from the root of the mount, or an absolute one; of files that were removed, mendfs lost --all MOUNTPOINT tells all there is",
		"there is no %q, and the records know of none", path)
}

// everLost is the files that have rows, or had.
func (r *records) everLost(yield func(seenFile, error) bool) { r.lossy(true)(yield) }

// below is the scope of the directory dir.
func (r *records) below(ctx context.Context, dir string, recorded iter.Seq2[seenFile, error]) (scope, error) {
	w := walk{ctx: ctx, wanted: map[uint64]bool{}, found: map[string]string{}, whole: true}
	for f, err := range recorded {
		if err != nil {
			return nil, err
		}
		w.wanted[f.id.Ino] = true
	}
	if len(w.wanted) > 0 {
		if err := w.descend(r.within, dir, dir); err != nil {
			return nil, failed(err, "ask for the whole mount", "the files below %s can't be listed", dir)
		}
	}
	seenIn := seenBelow(dir)
	return func(id fileid.ID, seen string) (string, bool) {
		if name, ok := w.found[id.Key()]; ok {
			return name, true
		}
		if name, lives := r.find(id, seen); lives && (name != "" || w.whole) {
			return seenIn(id, name) // it was moved meanwhile, into dir or out of it
		}
		return seenIn(id, seen) // removed, or not to be found
	}, nil
}

// nameNow is a name that the file has now; where none can be found the one that
// it had.
func (r *records) nameNow(id fileid.ID, seen string) string {
	if name, _ := r.find(id, seen); name != "" {
		return name
	}
	return seen
}

// find looks for the file itself. The name is empty if the kernel knows none at
// the moment, as for a file that nobody has looked up since it was mounted.
func (r *records) find(id fileid.ID, seen string) (name string, lives bool) {
	if r.within < 0 {
		return "", false
	}
	if r.names(seen, id) {
		return seen, true
	}
	fd, err := fileid.Open(r.within, id, seen, unix.O_PATH)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
		return "", false // open still, but without a name
	}
	if name = fileid.Path(r.within, fd); !r.names(name, id) {
		name = ""
	}
	return name, true
}

// names reports whether path is a name of the file.
func (r *records) names(path string, id fileid.ID) bool {
	fd, err := openBeneath(r.within, path, unix.O_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	found, err := fileid.Of(fd)
	return err == nil && found.Key() == id.Key()
}

// walk finds the names of files below a directory. It holds one descriptor per
// level, and remembers only files that are wanted.
type walk struct {
	ctx    context.Context
	wanted map[uint64]bool   // inode numbers
	found  map[string]string // by fileid.ID.Key: a name of the file
	whole  bool              // nothing had to be left out
}

// descend looks into the directory that has the name at, which is relative to
// dir, and the path name, relative to the root. It does not leave the
// filesystem nor follow symbolic links.
func (w *walk) descend(dir int, at, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Openat2(dir, at, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EXDEV):
		return nil // removed or replaced meanwhile; another filesystem
	case errors.Is(err, unix.EACCES):
		w.whole = false
		return nil
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			return err
		}
		for e := range dirents(buf[:n]) {
			if err := w.visit(fd, e, name+"/"+e.name); err != nil {
				return err
			}
		}
	}
}

func (w *walk) visit(dir int, e dirent, name string) error {
	switch e.kind {
	case unix.DT_DIR:
		if len(name) >= unix.PathMax {
			w.whole = false // nobody can open it by such a name either
			return nil
		}
		return w.descend(dir, e.name, name)
	case unix.DT_REG, unix.DT_UNKNOWN:
		if w.wanted[e.ino] || e.kind == unix.DT_UNKNOWN {
			return w.note(dir, e, name)
		}
	}
	return nil
}

// note remembers the name of a file if it is wanted by its number. The identity
// is what tells it from another one that has the number now.
func (w *walk) note(dir int, e dirent, name string) error {
	fd, err := unix.Openat(dir, e.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return w.visit(dir, dirent{e.ino, unix.DT_DIR, e.name}, name)
	case unix.S_IFREG:
		id, err := fileid.Of(fd)
		if err != nil {
			return err
		}
		if w.wanted[id.Ino] {
			w.found[id.Key()] = name
		}
	}
	return nil
}

// dirent is a directory entry.
type dirent struct {
	ino  uint64
	kind byte // unix.DT_*
	name string
}

// dirents reads struct linux_dirent64 (getdents(2)), without "." and "..".
func dirents(buf []byte) iter.Seq[dirent] {
	return func(yield func(dirent) bool) {
		const head = 19 // d_ino 8, d_off 8, d_reclen 2, d_type 1
		for len(buf) > head {
			size := min(int(binary.NativeEndian.Uint16(buf[16:])), len(buf))
			if size <= head {
				return // the kernel writes no such thing
			}
			e := dirent{binary.NativeEndian.Uint64(buf), buf[18], unix.ByteSliceToString(buf[head:size])}
			buf = buf[size:]
			if e.name != "." && e.name != ".." && !yield(e) {
				return
			}
		}
	}
}
