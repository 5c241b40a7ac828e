package soak

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// doubt is an operation that was under way when the mount was killed, and the files
// that its names were.
type doubt struct {
	op       op
	file, to *content
}

// resolve finds out what became of an operation that was under way when the
// mount was killed: it happened, or not, or in part. The bare file follows.
func (w *worker) resolve(d doubt) error {
	o := d.op
	switch o.Verb {
	case reopen:
		return nil // it changes nothing, and a file without a name is gone by now
	case create, rename, swap, link, unlink:
		happened, err := w.happened(o)
		if err != nil || !happened {
			return err
		}
		if res := w.bare.perform(o); res.err != nil {
			return fmt.Errorf("it happened, and on the bare filesystem: %w", res.err)
		}
		w.oracle.apply(o, 0)
		w.bare.closeAll()
		w.oracle.closeAll()
		return nil
	}
	changed := d.file
	if o.Verb == copyRange {
		changed = d.to
	}
	for _, name := range w.oracle.names() {
		if w.oracle.files[name] == changed {
			return w.resolveContent(d, name)
		}
	}
	return nil // it has no name, and is gone
}

// happened looks for what a change of names has left.
func (w *worker) happened(o op) (bool, error) {
	from, err := inode(w.mount.path(o.Name))
	if err != nil {
		return false, err
	}
	before, err := inode(w.bare.path(o.Name))
	if err != nil {
		return false, err
	}
	switch o.Verb {
	case create:
		return from != 0 && before == 0, nil
	case unlink:
		return from == 0 && before != 0, nil
	case rename:
		return from == 0 && before != 0, nil
	}
	to, err := inode(w.mount.path(o.To))
	if err != nil {
		return false, err
	}
	if o.Verb == link {
		was, err := inode(w.bare.path(o.To))
		return to != 0 && was == 0, err
	}
	f, other := w.oracle.files[o.Name], w.oracle.files[o.To]
	if f == nil || other == nil || f == other {
		return false, nil
	}
	return w.holds(o.Name, other) && !w.holds(o.Name, f), nil
}

// holds reports whether the file of that name may be f.
func (w *worker) holds(name string, f *content) bool {
	if w.mount.checkStat(name, f) != nil {
		return false
	}
	got := w.mount.perform(op{Verb: read, Name: name, Range: ranges.Range{Len: f.size() + 1}})
	return got.err == nil && f.readBytes(0, got.data) == nil
}

// inode is 0 if nothing is there.
func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return st.Ino, err
}

// resolveContent takes each byte as it was before or after the operation.
func (w *worker) resolveContent(d doubt, name string) error {
	o, before := d.op, w.oracle.files[name]
	old := before.clone()
	files := map[string]*content{o.Name: d.file.clone()}
	n := o.Range.Len
	if o.Verb == copyRange {
		n = max(0, min(n, d.file.size()-o.Range.Off))
		if d.to != d.file {
			files[o.To] = d.to.clone()
		} else {
			files[o.To] = files[o.Name]
		}
	}
	(&oracle{unit: w.oracle.unit, files: files}).apply(o, n)
	after := files[o.Name]
	if o.Verb == copyRange {
		after = files[o.To]
	}

	got, err := os.ReadFile(w.mount.path(name))
	if err != nil {
		return err
	}
	least, most := min(old.size(), after.size()), max(old.size(), after.size())
	if size := int64(len(got)); size < least || size > most {
		return fmt.Errorf("%d bytes, and it had %d before, %d after", size, old.size(), after.size())
	}
	return w.adopt(name, before, old, after, got)
}

// adopt makes what was found the truth.
func (w *worker) adopt(name string, f, old, after *content, got []byte) error {
	hurt := ranges.Of(append(old.hurt.Slice(), after.hurt.Slice()...)...)
	data := make([]byte, len(got))
	for i, b := range got {
		isOld := i < len(old.data) && old.data[i] == b
		isNew := i < len(after.data) && after.data[i] == b
		switch {
		case isOld, isNew:
			data[i] = b
		case b == 0 && hurt.Overlaps(ranges.Range{Off: int64(i), Len: 1}):
			if i < len(after.data) {
				data[i] = after.data[i]
			} else {
				data[i] = old.data[i]
			}
		default:
			return fmt.Errorf("byte %d is %#x, which it was neither before nor after", i, b)
		}
	}
	f.data = data
	f.hurt = hurt
	f.latent = ranges.Of(append(old.latent.Slice(), after.latent.Slice()...)...)
	f.stale = ranges.Of(append(append(old.stale.Slice(), after.stale.Slice()...), hurt.Slice()...)...)
	f.hurt.Remove(ranges.Between(f.size(), endless))
	f.unsaid = ranges.Of(append(old.unsaid.Slice(), append(after.unsaid.Slice(), after.copied.Slice()...)...)...)
	return w.bare.become(name, data)
}

// become makes a bare file what the one in the mount has turned out to be.
func (w *world) become(name string, data []byte) error {
	fd, err := w.fd(name)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		return err
	}
	if res := writeAt(fd, data, 0); res.err != nil || res.n != int64(len(data)) {
		return fmt.Errorf("%s: %d of %d bytes: %w", w.path(name), res.n, len(data), orNil(res.err))
	}
	return nil
}
