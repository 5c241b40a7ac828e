package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/mendfs/mendfs/recovery/fileid"
)

// schema is the version that this code writes, and the newest that it reads.
const schema = 2

// lockPatience is how long a second opener waits for the first to go away.
const lockPatience = time.Second

// identity is what a store was made for.
type identity struct {
	fs   string
	root fileid.ID
}

// bucket and key names of all schemas.
func bucketMeta() []byte    { return []byte("meta") }
func bucketFiles() []byte   { return []byte("files") }
func bucketRows() []byte    { return []byte("rows") }
func bucketHistory() []byte { return []byte("history") }
func bucketClosed() []byte  { return []byte("closed") }
func keyVersion() []byte    { return []byte("version") }
func keyStore() []byte      { return []byte("store") }
func keyCounts() []byte     { return []byte("counts") }

// store is the bbolt file. bbolt reads through a mapping, panics on some kinds
// of damage, and takes a SIGBUS where the file was cut or its disk fails:
// guard makes errors of all these, and from then on the store is left alone.
type store struct {
	path     string
	db       *bbolt.DB
	file     *os.File // bbolt's own
	identity identity
	version  uint64 // of the schema

	mu     sync.Mutex // guards broken
	broken error
	gone   chan struct{} // closed when broken is set
}

// create makes an empty store at path, unless there is something. It appears
// under its name only when complete, so that a crash leaves all or nothing.
func create(path string, id identity) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err // nil: it exists, and openStore says what it is
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return fmt.Errorf("creating ledger: %w", err)
	}
	defer os.Remove(tmp.Name()) // a name less, if the link below worked
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("creating ledger %s: %w", path, err)
	}
	if err := fill(tmp.Name(), id); err != nil {
		return fmt.Errorf("creating ledger %s: %w", path, err)
	}
	err = os.Link(tmp.Name(), path)
	if err != nil && !errors.Is(err, os.ErrExist) { // another process was faster
		return fmt.Errorf("creating ledger: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func fill(path string, id identity) error {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketFiles(), bucketRows(), bucketHistory(), bucketClosed()} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta, err := tx.CreateBucket(bucketMeta())
		if err != nil {
			return err
		}
		var r record
		r.string(id.fs)
		r.id(id.root)
		return errors.Join(
			meta.Put(keyVersion(), binary.BigEndian.AppendUint64(nil, schema)),
			meta.Put(keyStore(), r.seal(keyStore())),
			putCounts(tx, counts{nextID: 1}))
	})
	return errors.Join(err, db.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("creating ledger: %w", err)
	}
	defer dir.Close() // opened for reading
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("creating ledger: sync of %s: %w", path, err)
	}
	return nil
}

func openStore(path string, readOnly bool) (*store, error) {
	s := &store{path: path, gone: make(chan struct{})}
	if st, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening ledger: %w", err)
	} else if st.Size() < 2*int64(os.Getpagesize()) { // bbolt would start an empty one anew
		return nil, s.damaged(fmt.Errorf("it has %d bytes, less than any", st.Size()))
	}
	err := s.guard(func() (err error) {
		s.db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout:      lockPatience,
			ReadOnly:     readOnly,
			FreelistType: bbolt.FreelistMapType,
			OpenFile:     s.openFile,
		})
		return err
	})
	if err != nil {
		return nil, s.openError(err)
	}
	if err := s.view(s.readHeader); err != nil {
		_ = s.close() // the first error is the one to tell
		return nil, err
	}
	return s, nil
}

func (s *store) openFile(name string, flag int, mode os.FileMode) (f *os.File, err error) {
	f, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
	s.file = f
	return f, err
}

// openError says what bbolt's refusal means.
func (s *store) openError(err error) error {
	var known *StoreError
	switch {
	case errors.As(err, &known):
		_ = s.close() // a panic within bbolt.Open leaves the file open and locked
		return err
	case errors.Is(err, berrors.ErrTimeout):
		return &StoreError{Path: s.path, Kind: ErrLocked, Err: err}
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return s.damaged(err)
	}
	return fmt.Errorf("opening ledger %s: %w", s.path, err)
}

// readHeader checks that the file is whole and of this schema, and reads
// whose it is.
func (s *store) readHeader(tx *bbolt.Tx) error {
	if st, err := s.file.Stat(); err != nil {
		return fmt.Errorf("ledger %s: %w", s.path, err)
	} else if st.Size() < tx.Size() {
		return s.damaged(fmt.Errorf("it has %d bytes where %d should be", st.Size(), tx.Size()))
	}
	if err := s.check(tx); err != nil {
		return err
	}
	meta := tx.Bucket(bucketMeta())
	if meta == nil {
		return s.damaged(errors.New("it is no ledger"))
	}
	version := meta.Get(keyVersion())
	if len(version) != 8 {
		return s.damaged(errors.New("it has no schema version"))
	}
	switch s.version = binary.BigEndian.Uint64(version); {
	case s.version > schema:
		return &StoreError{Path: s.path, Kind: ErrVersion, Err: fmt.Errorf("it has schema version %d, and this mendfs knows %d", s.version, schema)}
	case s.version == 0:
		return s.damaged(errors.New("it has schema version 0"))
	}
	for _, name := range [][]byte{bucketFiles(), bucketRows(), bucketHistory(), bucketClosed()} {
		if tx.Bucket(name) == nil {
			return s.damaged(fmt.Errorf("its bucket %q is missing", name))
		}
	}
	f := unseal(keyStore(), meta.Get(keyStore()))
	s.identity = identity{fs: f.string(), root: f.id()}
	if err := f.end(); err != nil {
		return s.damaged(fmt.Errorf("the record of its filesystem: %w", err))
	}
	return nil
}

// view runs do in a read transaction. do must not wait for anyone.
func (s *store) view(do func(*bbolt.Tx) error) error {
	return s.guard(func() error { return s.db.View(do) })
}

// update runs do in a durable transaction.
func (s *store) update(do func(*bbolt.Tx) error) error {
	err := s.guard(func() error { return s.db.Update(do) })
	var known *StoreError
	if err != nil && !errors.As(err, &known) {
		return fmt.Errorf("writing ledger %s: %w", s.path, err)
	}
	return err
}

// guard runs do, on a goroutine that ends with it: never, perhaps, if the store is broken
// meanwhile, since then a lock of bbolt's may stay locked. It is not waited for.
func (s *store) guard(do func() error) error {
	if err := s.health(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.protected(do) }()
	select {
	case err := <-done:
		return err
	case <-s.gone:
		return s.health()
	}
}

// health is why the store is left alone; nil if it is not.
func (s *store) health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// protected makes an error of a panic or a fault in do, of which the store is broken.
func (s *store) protected(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a SIGBUS on the mapping becomes a panic
	defer func() {
		if p := recover(); p != nil {
			err = s.damaged(fmt.Errorf("%v", p))
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.broken == nil {
				s.broken = err
				close(s.gone)
			}
		}
	}()
	return do()
}

func (s *store) damaged(err error) error {
	return &StoreError{Path: s.path, Kind: ErrDamaged, Err: err}
}

// close gives up the file and its lock. A broken bbolt may hold its own locks
// for ever, so that only that of the file is given up.
func (s *store) close() error {
	if s.health() == nil {
		return s.db.Close()
	}
	if s.file != nil {
		// The mapping, which stays, would keep the lock; and somebody may be at it still, so that
		// the descriptor must not become another file's. Error: it may be closed already.
		_ = unix.Flock(int(s.file.Fd()), unix.LOCK_UN)
	}
	return nil
}

// counts is what makes missing records noticeable and row ids unique.
type counts struct {
	nextID, files, closed uint64
	sum                   uint64 // of the records of files and closed intents
	tx                    uint64 // that wrote this: the newest one
}

func putCounts(tx *bbolt.Tx, c counts) error {
	var r record
	r.uint(c.nextID)
	r.uint(c.files)
	r.uint(c.closed)
	r.uint(c.sum)
	r.uint(uint64(tx.ID()))
	return tx.Bucket(bucketMeta()).Put(keyCounts(), r.seal(keyCounts()))
}

func (s *store) counts(tx *bbolt.Tx) (counts, error) {
	f := unseal(keyCounts(), tx.Bucket(bucketMeta()).Get(keyCounts()))
	c := counts{nextID: f.uint(), files: f.uint(), closed: f.uint()}
	if s.version >= 2 {
		c.sum, c.tx = f.uint(), f.uint()
	}
	if err := f.end(); err != nil {
		return c, s.damaged(fmt.Errorf("the record of its counts: %w", err))
	}
	return c, nil
}

// under walks the records whose keys start with prefix.
func under(b *bbolt.Bucket, prefix []byte, do func(k, v []byte) error) error {
	c := b.Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if err := do(k, v); err != nil {
			return err
		}
	}
	return nil
}
