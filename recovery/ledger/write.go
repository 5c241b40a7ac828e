package ledger

import (
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

// write is the one transaction of a batch.
func (l *Ledger) write(b batch) error {
	if len(b.files) == 0 && len(b.history) == 0 && len(b.closing) == 0 && len(b.forgotten) == 0 {
		return nil
	}
	slices.SortFunc(b.files, func(x, y fileWrite) int { return strings.Compare(x.file.key, y.file.key) })
	history := map[*file][]past{}
	for _, p := range b.history {
		history[p.file] = append(history[p.file], p)
	}
	return l.store.update(func(tx *bbolt.Tx) error {
		was, err := l.store.counts(tx)
		if err != nil {
			return err
		}
		c := b.counts
		c.sum = was.sum
		for _, w := range b.files { // all that has history is there
			r, err := l.store.recordOf(tx, w.file.key)
			if err == nil {
				err = w.put(tx, r, history[w.file], &c.sum)
			}
			if err != nil {
				return err
			}
		}
		if err := putClosed(tx.Bucket(bucketClosed()), b.closing, b.forgotten, &c.sum); err != nil {
			return err
		}
		return putCounts(tx, c)
	})
}

// replace puts value in the place of what the bucket has under key, nothing if it
// is nil, and keeps the sum of records right.
func replace(b *bbolt.Bucket, key, value []byte, sum *uint64) error {
	if old := b.Get(key); old != nil {
		*sum -= hash(key, old)
	}
	if value == nil {
		return b.Delete(key)
	}
	*sum += hash(key, value)
	return b.Put(key, value)
}

// put writes the rows of a file, and then its record, which is r so far. A file
// that has no rows any more loses its record.
func (w fileWrite) put(tx *bbolt.Tx, r fileRecord, history []past, sum *uint64) error {
	slices.SortFunc(w.rows, func(x, y rowWrite) int { return int(min(1, max(-1, x.off-y.off))) })
	for _, one := range w.rows {
		key := rowKey(w.file.key, one.off)
		var value []byte
		if one.row.what != nil {
			value = encodeRow(key, one.row)
		}
		if err := replace(tx.Bucket(bucketRows()), key, value, &r.liveSum); err != nil {
			return err
		}
	}
	for _, p := range history {
		key := historyKey(w.file.key, p.Off, p.id)
		if err := replace(tx.Bucket(bucketHistory()), key, encodeRow(key, p.row), &r.pastSum); err != nil {
			return err
		}
	}
	r.id, r.path, r.live, r.past = w.file.id, w.path, w.live, w.past
	key := []byte(w.file.key)
	var value []byte
	if w.live+w.past > 0 {
		value = r.encode(key)
	}
	return replace(tx.Bucket(bucketFiles()), key, value, sum)
}

func putClosed(b *bbolt.Bucket, closing, forgotten []uint64, sum *uint64) error {
	for _, id := range closing {
		var r record
		key := intentKey(id)
		if err := replace(b, key, r.seal(key), sum); err != nil {
			return err
		}
	}
	for _, id := range forgotten {
		if err := replace(b, intentKey(id), nil, sum); err != nil {
			return err
		}
	}
	return nil
}
