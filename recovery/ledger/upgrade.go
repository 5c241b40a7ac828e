package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"

	"go.etcd.io/bbolt"
)

// upgrade makes a store of an earlier schema one of this, in one transaction.
// What it can't make sense of stays as it is, and is refused.
func (s *store) upgrade() error {
	if s.version == schema {
		return nil
	}
	err := s.update(func(tx *bbolt.Tx) error {
		c, err := s.counts(tx)
		if err != nil {
			return err
		}
		var files [][]byte
		closed := tx.Bucket(bucketClosed())
		err = errors.Join(
			tx.Bucket(bucketFiles()).ForEach(func(key, _ []byte) error { files = append(files, bytes.Clone(key)); return nil }),
			closed.ForEach(func(key, value []byte) error { c.sum += hash(key, value); return nil }))
		for _, key := range files {
			if err == nil {
				err = s.addSums(tx, string(key), &c.sum)
			}
		}
		if err != nil {
			return err
		}
		return errors.Join(putCounts(tx, c),
			tx.Bucket(bucketMeta()).Put(keyVersion(), binary.BigEndian.AppendUint64(nil, schema)))
	})
	if err == nil {
		s.version = schema
	}
	return err
}

// addSums writes the record of a file as schema 2 has it.
func (s *store) addSums(tx *bbolt.Tx, file string, sum *uint64) error {
	r, err := s.recordOf(tx, file)
	if err != nil {
		return err
	}
	for _, part := range []struct {
		bucket []byte
		n      int
		sum    *uint64
	}{{bucketRows(), r.live, &r.liveSum}, {bucketHistory(), r.past, &r.pastSum}} {
		err := s.rows(tx, part.bucket, file, part.n, 0, func([]byte, int64, row, kind) error { return nil })
		if err == nil {
			err = under(tx.Bucket(part.bucket), rowPrefix(file), func(key, value []byte) error {
				*part.sum += hash(key, value)
				return nil
			})
		}
		if err != nil {
			return err
		}
	}
	value := r.encode([]byte(file))
	*sum += hash([]byte(file), value)
	return tx.Bucket(bucketFiles()).Put([]byte(file), value)
}
