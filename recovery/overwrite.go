package recovery

import "github.com/mendfs/mendfs/recovery/ranges"

// overwrite writes neighbours of which all is the application's in one call, and
// returns how many of the pages, from the first, are done. What the medium refuses is
// left to the ladder, page by page.
//
// Of pages that hold something else one call must not write more than one. The
// kernel goes by strides: to the first page on its list, which it clears together
// with the pages in front, and then copies all of them (dax_iomap_iter and
// pmem_recovery_write, Linux 5.19 to 6.18; TestOverwriteInOneCall, lab facts 4). Here
// that takes nothing from anybody, since the pages in front are to be overwritten too:
// a refused stride is written again one page at a time; a kill comes between
// strides, so that each page is the old or the new; and where the power goes between
// clear and copy, more than one page may hold anything, and the intent has a sum of each
// (tornPages).
func (r *repair) overwrite(n run) (pages int) {
	if len(n.mends) < 2 || r.data == nil || r.file.appends() {
		return 0
	}
	data := r.data[n.pages.Off-r.at:][:n.pages.Len]
	written, err := r.file.below.Pwrite(data, n.pages.Off, 0)
	if err != nil {
		return 0
	}
	pages = written / ranges.PageSize
	for _, m := range n.mends[:pages] {
		m.rung = "page-written"
	}
	return pages
}
