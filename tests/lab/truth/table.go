package truth

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Ops are the rows. Unless a name says otherwise the file has four pages, and
// the bad sector is the fourth of the second page.
func Ops() []Op {
	return append(append(append(reads(), writes()...), frees()...), tails()...)
}

func op(name string, calls ...Call) Op { return Op{name, 4 * page, []int64{11}, calls} }

// on is the operation with other bad sectors.
func (o Op) on(bad ...int64) Op {
	o.Bad = bad
	return o
}

func reads() []Op {
	return []Op{
		op("read the bad page", read(page, page)),
		op("read a good sector of the bad page", read(page, sector)),
		op("read a byte of a good sector of the bad page", read(2*page-1, 1)),
		op("read the bad sector", read(11*sector, sector)),
		op("read the page before", read(0, page)),
		op("read the page after", read(2*page, page)),
		op("read up to the bad page and a byte of it", read(0, page+1)),
		op("read all", read(0, 4*page)),
		op("read all and past the end", read(0, 5*page)),
		op("read all, first page bad", read(0, 4*page)).on(0),
		op("read all, last page bad", read(0, 4*page)).on(31),
		op("read behind the bad page to the end", read(2*page, 2*page)),
		op("read twice", read(page, page), read(page, page)),
		op("read across the end, bad page first", read(page, 8*page)),
		op("fsync", sync(true)),
		op("fdatasync", sync(false)),
	}
}

func writes() []Op {
	return []Op{
		op("write the bad page", write(page, page)),
		op("write the bad page, then read it", write(page, page), read(0, page)),
		op("write the bad page, its first sector bad", write(page, page)).on(8),
		op("write the bad page, its last sector bad", write(page, page)).on(15),
		op("write the bad page, all sectors bad", write(page, page)).on(8, 9, 10, 11, 12, 13, 14, 15),
		op("write three pages, the bad one in the middle", write(0, 3*page)),
		op("write all, two pages bad", write(0, 4*page)).on(11, 27),
		op("write the first of two bad pages", write(page, page)).on(11, 19),
		op("write two bad pages", write(page, 2*page)).on(11, 19),
		op("write the bad sector", write(11*sector, sector)),
		op("write a good sector of the bad page", write(page, sector)),
		op("write a byte of the bad page", write(2*page-1, 1)),
		op("write 4095 from the begin of the bad page", write(page, page-1)),
		op("write the bad page and a sector more", write(page, page+sector)),
		op("write a sector and the bad page", write(page-sector, page+sector)),
		op("write a page and the bad page from the middle", write(page-sector, 2*page)),
		op("write a sector and the bad page, its first sector bad", write(page-sector, page+sector)).on(8),
		op("write the page before and a part of the bad page", write(0, page+sector)),
		op("write the page before and a part of the bad page, its first sector bad", write(0, page+sector)).on(8),
		op("write the bad page and a part of the next bad page", write(page, page+sector)).on(11, 19),
		op("write the bad page and a part of the next, whose first sector is bad", write(page, page+sector)).on(11, 16),
		op("write the page before", write(0, page)),
		op("write a sector, then the page, then the sector", write(11*sector, sector), write(page, page), write(11*sector, sector)),
		op("write two sectors across pages, the first bad", write(2*page-sector, 2*sector)),
	}
}

func frees() []Op {
	return []Op{
		op("zero-range the bad page", zero(page, page)),
		op("zero-range the bad page, then write it", zero(page, page), write(page, page)),
		op("zero-range the bad page, then write a sector", zero(page, page), write(page, sector)),
		op("zero-range the bad sector", zero(11*sector, sector)),
		op("zero-range a good sector of the bad page", zero(page, sector)),
		op("zero-range from the middle of the page before", zero(page-sector, page+sector)),
		op("zero-range into the middle of the bad page", zero(0, page+sector)),
		op("zero-range all", zero(0, 4*page)),
		op("punch the bad page", punch(page, page)),
		op("punch the bad page, then write it", punch(page, page), write(page, page)),
		op("punch the bad page, then write a sector", punch(page, page), write(page, sector)),
		op("punch the bad sector", punch(11*sector, sector)),
		op("punch a good sector of the bad page", punch(page, sector)),
		op("punch from the middle of the page before", punch(page-sector, page+sector)),
		op("punch into the middle of the bad page", punch(0, page+sector)),
		op("punch from the middle of the bad page", punch(page+sector, 2*page)),
		op("punch from the middle of the page before into the bad page", punch(sector, page)),
		op("punch from the middle of the bad page to that of the next bad page", punch(page+sector, 2*page)).on(11, 27),
		op("punch a bad page and into the next", punch(page, page+sector)).on(11, 19),
		op("zero-range from the middle of the bad page", zero(page+sector, 2*page)),
		op("zero-range from the middle of the page before into the bad page", zero(sector, page)),
		op("zero-range a bad page and into the next", zero(page, page+sector)).on(11, 19),
		op("punch a part of the page before", punch(0, sector)),
		op("fallocate over it", allocate(0, 0, 4*page)),
		op("fallocate past the end", allocate(0, 0, 6*page)),
		op("truncate to nothing", truncate(0)),
		op("truncate to the begin of the bad page", truncate(page)),
		op("truncate to the bad sector", truncate(11*sector)),
		op("truncate behind the bad sector", truncate(12*sector)),
		op("truncate to the end of the bad page", truncate(2*page)),
		op("truncate to a byte of the page after", truncate(2*page+1)),
		op("truncate up", truncate(6*page)),
		op("truncate away and up again", truncate(page), truncate(4*page)),
		op("write past the end", write(6*page, page)),
	}
}

// tails are files that end within their bad last page.
func tails() []Op {
	var all []Op
	for _, n := range []int64{1, 511, 512, 4095} {
		size := 2*page + n
		tail := func(name string, calls ...Call) Op {
			return Op{fmt.Sprintf("bad tail of %d: %s", n, name), size, []int64{16}, calls}
		}
		all = append(all,
			tail("read it", read(2*page, n)),
			tail("read all and past the end", read(0, 4*page)),
			tail("write it", write(2*page, n)),
			tail("write a page there", write(2*page, page)),
			tail("write a page there, truncate back, grow", write(2*page, page), truncate(size), truncate(3*page)),
			tail("append a byte", write(size, 1)),
			tail("append to the end of the page", write(size, page-n)),
			tail("write the page after", write(3*page, page)),
			tail("truncate down within", truncate(2*page+n/2)),
			tail("truncate to the page before", truncate(2*page)),
			tail("truncate up", truncate(5*page)),
			tail("fallocate past the end", allocate(0, 3*page, page)),
			tail("fallocate past the end, keeping the size", allocate(unix.FALLOC_FL_KEEP_SIZE, 3*page, page)),
			tail("zero it", zero(2*page, n)),
			tail("zero its page", zero(2*page, page)),
			tail("punch its page", punch(2*page, page)),
		)
	}
	return all
}
