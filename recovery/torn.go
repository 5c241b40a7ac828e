package recovery

import (
	"hash/crc32"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// sumOf is the checksum of a page in an intent.
func sumOf(page []byte) uint32 { return crc32.Checksum(page, crc32.MakeTable(crc32.Castagnoli)) }

// tornPages is the pages of an intent without an image that can be read and don't
// hold what was to be written: the power may have gone between clear and copy,
// where the memory holds anything (kernel facts, 2). That is only so if the boot
// is another one and the file was not changed since (isOurs); a daemon that just
// died leaves whole pages. Pages that the repair did not come to are among them if
// they can be read: those were cleared by another way, or never bad. sure is
// false if the intent has no sums: an earlier version made it, or it was made
// for a page with an image.
func (rp *replay) tornPages() (torn []ranges.Range, sure bool, err error) {
	sums := rp.in.Sums
	now := make([]byte, ranges.PageSize)
	for _, fresh := range rp.in.Overwritten {
		for page := ranges.Page(fresh.Off); page.Off < fresh.End(); page = page.Shift(ranges.PageSize) {
			if len(sums) == 0 {
				return nil, false, nil
			}
			sum := sums[0]
			sums = sums[1:]
			n, err := rp.file.below.Pread(now, page.Off)
			switch {
			case err != nil && !mayBePoison(err):
				return nil, false, err
			case err != nil || n < len(now):
				// Still bad, or cut off since.
			case sumOf(now) != sum:
				torn = append(torn, page)
			}
		}
	}
	return torn, true, nil
}
