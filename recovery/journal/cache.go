package journal

import "sync"

// cacheLimit is how many images a cache holds: 8 MiB, as they lie in memory.
const cacheLimit = 1700

// cache holds images that were read, by the place of their records in the file:
// a record never changes, so that nothing here is ever out of date. The zero
// cache is empty and ready.
type cache struct {
	mu     sync.Mutex // guards images; taken last
	images map[int64]Image
}

func (c *cache) get(off int64) (Image, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	im, ok := c.images[off]
	return im, ok
}

// put adds an image. In a full cache it takes the place of any other: whoever
// reads a file from end to end again and again would come too late for each image
// if the oldest went.
func (c *cache) put(off int64, im Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.images == nil {
		c.images = map[int64]Image{}
	}
	for other := range c.images {
		if len(c.images) < cacheLimit {
			break
		}
		delete(c.images, other)
	}
	c.images[off] = im
}

// drop forgets an image that was replaced or dropped.
func (c *cache) drop(off int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, off)
}
