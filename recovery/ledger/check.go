package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// bbolt trusts its pages: from a damaged one it may follow a circle until the
// stack overflows, which nothing can catch, or write over a page in use. So
// check walks the tree once, at open, and reads it from the file, not from
// bbolt's mapping. What records hold is guarded by their own checksums.
//
// The layout is bbolt's file format 2 (its internal/common/page.go), in the
// byte order of the machine; TestFlippedBits would notice a change.
const (
	pageHeader  = 16 // id u64, flags u16, count u16, overflow u32
	pageElement = 16 // branch: pos, ksize u32, page u64; leaf: flags, pos, ksize, vsize u32
	bucketRoot  = 16 // root page u64 (0: a page within the value), sequence u64
	flagBranch  = 0x01
	flagLeaf    = 0x02
	flagBucket  = 0x01 // of a leaf element
)

// checker is one walk over the pages.
type checker struct {
	store    *store
	tx       *bbolt.Tx
	pageSize int
	used     []bool   // by page
	free     [][]byte // buffers of one page: as many as the tree is deep
}

// check says what is wrong with the pages, or nil.
func (s *store) check(tx *bbolt.Tx) error {
	size := s.db.Info().PageSize
	c := &checker{store: s, tx: tx, pageSize: size, used: make([]bool, tx.Size()/int64(size))}
	err := c.page(uint64(tx.Cursor().Bucket().RootPage()))
	if err == nil && !s.db.IsReadOnly() {
		err = c.freePages()
	}
	if err != nil {
		return s.damaged(err)
	}
	return nil
}

// page checks the tree below a page.
func (c *checker) page(id uint64) error {
	if id < 2 || id >= uint64(len(c.used)) {
		return fmt.Errorf("page %d is not in the file", id)
	}
	content := c.buffer()
	defer func() { c.free = append(c.free, content[:c.pageSize]) }()
	if err := c.read(content, id); err != nil {
		return err
	}
	pages := 1 + uint64(binary.NativeEndian.Uint32(content[12:]))
	if binary.NativeEndian.Uint64(content) != id || pages > uint64(len(c.used))-id {
		return fmt.Errorf("page %d has the header of another", id)
	}
	for n := id; n < id+pages; n++ {
		if c.used[n] {
			return fmt.Errorf("page %d is used twice", n)
		}
		c.used[n] = true
	}
	if pages > 1 {
		content = make([]byte, int(pages)*c.pageSize)
		if err := c.read(content, id); err != nil {
			return err
		}
	}
	if err := c.content(content); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (c *checker) buffer() []byte {
	n := len(c.free) - 1
	if n < 0 {
		return make([]byte, c.pageSize)
	}
	b := c.free[n]
	c.free = c.free[:n]
	return b
}

func (c *checker) read(b []byte, id uint64) error {
	if _, err := c.store.file.ReadAt(b, int64(id)*int64(c.pageSize)); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// content checks the elements of a page, and what they lead to.
func (c *checker) content(page []byte) error {
	if len(page) < pageHeader {
		return errors.New("it is too short")
	}
	flags, count := binary.NativeEndian.Uint16(page[8:]), int(binary.NativeEndian.Uint16(page[10:]))
	if pageHeader+count*pageElement > len(page) {
		return fmt.Errorf("%d elements do not fit", count)
	}
	visit := c.leaf
	switch {
	case flags == flagBranch && count > 0:
		visit = c.branch
	case flags != flagLeaf:
		return fmt.Errorf("it is of kind %#x, with %d elements", flags, count)
	}
	var before []byte
	for i := range count {
		key, err := visit(page[pageHeader+i*pageElement:])
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(before, key) >= 0 {
			return errors.New("its keys are not in order")
		}
		before = key
	}
	return nil
}

// branch checks the branch element that rest begins with; positions count from
// there.
func (c *checker) branch(rest []byte) (key []byte, err error) {
	pos, size := u32(rest, 0), u32(rest, 4)
	if pos+size > len(rest) {
		return nil, errors.New("a key is not within the page")
	}
	return rest[pos : pos+size], c.page(binary.NativeEndian.Uint64(rest[8:]))
}

// leaf checks the leaf element that rest begins with.
func (c *checker) leaf(rest []byte) (key []byte, err error) {
	flags, pos, keySize, size := u32(rest, 0), u32(rest, 4), u32(rest, 8), u32(rest, 12)
	if pos+keySize+size > len(rest) {
		return nil, errors.New("a record is not within the page")
	}
	key, value := rest[pos:pos+keySize], rest[pos+keySize:pos+keySize+size]
	switch {
	case flags == 0:
		return key, nil
	case flags != flagBucket || len(value) < bucketRoot:
		return nil, errors.New("a record is of an unknown kind")
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return key, c.page(root)
	}
	return key, c.content(value[bucketRoot:])
}

func u32(b []byte, at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }

// freePages checks that no page in use is on the list of free ones, and that
// the list names no page that is not in the file.
func (c *checker) freePages() error {
	free := 0
	for id := 2; id < len(c.used); id++ {
		info, err := c.tx.Page(id)
		switch {
		case err != nil:
			return fmt.Errorf("page %d: %w", id, err)
		case info == nil || info.Type != "free":
		case c.used[id]:
			return fmt.Errorf("page %d is in use and in the list of free pages", id)
		default:
			free++
		}
	}
	if listed := c.store.db.Stats().FreePageN; listed != free {
		return fmt.Errorf("%d free pages are listed, and %d are there", listed, free)
	}
	return nil
}
