package recovery

import (
	"github.com/mendfs/mendfs/recovery/event"
	"github.com/mendfs/mendfs/recovery/media"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// readStrictly answers as the medium does, except that the count is never short
// before the end: the kernel's FUSE would take it as the end of the file.
func (f *File) readStrictly(p []byte, off int64, who Caller) (int, error) {
	st, err := f.stat()
	if err != nil {
		return 0, err
	}
	want := ranges.Range{Off: off, Len: int64(len(p))}.Intersect(ranges.Between(0, st.Size))
	p = p[:want.Len]
	for done := 0; done < len(p); {
		n, err := f.below.Pread(p[done:], want.Off+int64(done))
		done += n
		if err == nil && n > 0 {
			continue
		}
		if err == nil {
			return done, nil // the file was cut meanwhile
		}
		rest := ranges.Between(want.Off+int64(done), want.End())
		if !mayBePoison(err) {
			return 0, f.trouble(rest, err)
		}
		bad := f.firstListed(rest)
		if bad.Empty() {
			bad = rest.Intersect(ranges.Page(rest.Off))
			if f.below.Control(ranges.Of(rest.Widen(ranges.PageSize))) != nil {
				return 0, f.outage(rest, err)
			}
		}
		f.engine.counters.passedOn.Add(1)
		ev := f.event(event.Detected, bad, who)
		ev.Detected, ev.Action, ev.Error = cause(err), "passed-through", err.Error()
		ev.Next = "the semantics are strict: overwrite whole pages, or mount with --semantics recover"
		f.engine.Events.Emit(ev)
		return 0, &PoisonError{Range: rest, Err: err}
	}
	return len(p), nil
}

// firstListed is the first page of r that somebody's list has; the zero range if
// there is none. A kernel fails more than that for it.
func (f *File) firstListed(r ranges.Range) ranges.Range {
	for page := ranges.Page(r.Off); page.Off < r.End(); page = page.Shift(ranges.PageSize) {
		if f.below.Corroborate(page.Intersect(r)) == media.Listed {
			return page.Intersect(r)
		}
	}
	return ranges.Range{}
}
