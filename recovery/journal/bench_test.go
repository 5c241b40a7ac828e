package journal

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mendfs/mendfs/recovery/ranges"
)

// BenchmarkBegin is one part-page repair's share of the journal: an intent with
// an image, durable, and its close. $TMPDIR says on which disk.
func BenchmarkBegin(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers-%d", writers), func(b *testing.B) {
			j := tempJournal(b)
			b.SetBytes(ranges.PageSize)
			var wg sync.WaitGroup
			var left atomic.Int64
			left.Store(int64(b.N))
			for range writers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						in := full()
						if err := errors.Join(j.Begin(in), j.Close(in.ID)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
