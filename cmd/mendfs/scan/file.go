package scan

import (
	"context"
	"errors"
	"math"

	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// atEnd is an offset behind all that a file can have.
const atEnd = math.MaxInt64

// file reads the file open at fd, from offset on.
func (s *Scan) file(ctx context.Context, fd int, name string, offset int64) error {
	if offset == atEnd {
		return nil // it was read before the scan was interrupted
	}
	s.progress.Path, s.at = name, offset
	for pos := offset; ; {
		data, err := nextData(fd, pos)
		if err != nil {
			return s.skip(name, err)
		}
		if data.Empty() {
			break
		}
		if err := s.data(ctx, fd, data); err != nil {
			if ctx.Err() != nil || errors.Is(err, ErrOutage) {
				return err
			}
			return s.skip(name, err)
		}
		pos = data.End()
	}
	s.tellBad()
	s.progress.Files++
	s.at = atEnd
	return nil
}

// data reads a part of a file without holes.
func (s *Scan) data(ctx context.Context, fd int, r ranges.Range) error {
	for pos := r.Off; pos < r.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := ranges.Between(pos, min(r.End(), (pos/chunk+1)*chunk))
		if err := s.read(fd, piece); err != nil {
			return err
		}
		pos = piece.End()
		s.at = pos
		s.progress.Bytes += piece.Len
		s.At(s.progress)
		if s.Cursor != nil && s.Cursor.due() {
			s.tellBad() // the cursor stands behind it
			if err := s.save(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Scan) save() error {
	if s.Cursor == nil {
		return nil
	}
	return s.Cursor.save(s.progress, s.at)
}

// read reads r, by halves down to pages where that fails. A kernel fails a whole
// extent's worth for one bad sector (fs/dax.c, dax_iomap_iter, 5.19 to 6.18).
func (s *Scan) read(fd int, r ranges.Range) error {
	for !r.Empty() {
		n, err := unix.Pread(fd, s.buf[:r.Widen(ranges.PageSize).Len], r.Off) // whole pages, as O_DIRECT wants
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			return nil // it was cut meanwhile
		case err == nil:
			s.failures = 0
			r = ranges.Between(min(r.Off+int64(n), r.End()), r.End())
			if r.Empty() || r.Off%ranges.PageSize == 0 {
				continue
			}
			// Short in the middle of a page: at the end of the file, or of what can be read.
			if err := s.readPage(fd, &r); err != nil {
				return err
			}
			continue
		case !mayBePoison(err):
			return err
		case ranges.Page(r.Off).Contains(r):
			return s.cannot(r, err)
		}
		middle := max(ranges.Page(r.Off).End(), (r.Off+r.Len/2)&^(ranges.PageSize-1))
		if err := s.read(fd, ranges.Between(r.Off, middle)); err != nil {
			return err
		}
		r = ranges.Between(middle, r.End())
	}
	return nil
}

// readPage asks once more for the page in which a read stopped short, from its
// begin, and takes it off r.
func (s *Scan) readPage(fd int, r *ranges.Range) error {
	page := ranges.Page(r.Off).Intersect(ranges.Between(ranges.Page(r.Off).Off, r.End()))
	*r = ranges.Between(page.End(), r.End())
	n, err := unix.Pread(fd, s.buf[:ranges.PageSize], page.Off)
	var st unix.Stat_t
	if statErr := unix.Fstat(fd, &st); statErr != nil {
		return statErr
	}
	switch {
	case err == nil && page.Off+int64(n) >= min(page.End(), st.Size):
		return nil
	case err == nil:
		err = unix.EFAULT // short once more, and not at the end
	case !mayBePoison(err):
		return err
	}
	return s.cannot(page, err)
}

// mayBePoison: see package recovery.
func mayBePoison(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EFAULT) || errors.Is(err, unix.EHWPOISON) || errors.Is(err, unix.ENODATA)
}

// nextData is the first part of the file from pos on that is no hole, in whole
// pages as far as the file goes; empty if there is none.
func nextData(fd int, pos int64) (ranges.Range, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return ranges.Range{}, err
	}
	if pos >= st.Size {
		return ranges.Range{}, nil
	}
	begin, err := unix.Seek(fd, pos, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return ranges.Range{}, nil
	case err != nil:
		return ranges.Between(pos&^(ranges.PageSize-1), st.Size), nil // it knows no holes
	}
	end, err := unix.Seek(fd, begin, unix.SEEK_HOLE)
	if err != nil {
		end = st.Size
	}
	return ranges.Between(begin&^(ranges.PageSize-1), min(ranges.Range{Len: end}.Widen(ranges.PageSize).Len, st.Size)), nil
}
