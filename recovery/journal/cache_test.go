package journal

import (
	"testing"

	"github.com/mendfs/mendfs/recovery/fileid"
	"github.com/mendfs/mendfs/recovery/ranges"
)

// TestCacheIsBounded reads more images than are kept in memory, each twice: what is
// kept or not changes nothing but the number. Dropped ones are not kept.
func TestCacheIsBounded(t *testing.T) {
	j, err := open(newMemDisk(1), testPath, testFS)
	must(t, err)
	defer func() { must(t, j.Shutdown()) }()
	file := fileid.ID{Ino: 7}
	const pages = cacheLimit + 100
	for n := range int64(pages) {
		data := make([]byte, ranges.PageSize)
		data[n%ranges.PageSize] = 1
		must(t, j.SaveImage(file, "f", Image{Page: n * ranges.PageSize, Data: data}))
	}
	for range 2 {
		for n := range int64(pages) {
			im, ok, err := j.Image(file.Key(), n*ranges.PageSize)
			if err != nil || !ok || im.Data[n%ranges.PageSize] != 1 {
				t.Fatalf("page %d: %v, %v", n, ok, err)
			}
		}
	}
	if n := len(j.state.read.images); n != cacheLimit {
		t.Errorf("%d images in memory, want %d", n, cacheLimit)
	}
	must(t, j.DropImages(file.Key(), ranges.Range{Len: pages * ranges.PageSize}))
	if n := len(j.state.read.images); n != 0 {
		t.Errorf("%d images in memory of none that there are", n)
	}
}
