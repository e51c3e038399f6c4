package raftkv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// logStore is raft's log and its stable store in one bbolt file. Every method
// that changes something is one transaction, and returns once that is on
// stable storage.
//
// The log has no gaps. The entry of an index is, under the index (8 bytes, big
// endian):
//
//	0  CRC32C of the rest        4 bytes, little endian like all below
//	4  version, entryVersion     1
//	5  raft.LogType              1
//	6  index                     8
//	14 term                      8
//	22 time of append, Unix ns   8, 0 if there is none
//	30 length of the extensions  4
//	34 extensions, then data
//
// raft-wal, which is made for this, is not used: in TestProcessesKilled members
// that were killed could not be started again ("sealed segment has no index
// block" in v0.4.0). Two fsyncs per append instead of one are the price, and
// with a log of configuration changes it does not matter.
type logStore struct {
	db *bbolt.DB
}

var (
	_ raft.LogStore    = (*logStore)(nil)
	_ raft.StableStore = (*logStore)(nil)

	bucketLog    = []byte("log")
	bucketStable = []byte("stable")

	errLogDamaged = errors.New("raftkv: log is damaged")
)

const (
	entryVersion = 1
	entryHead    = 34
)

func openLogStore(path string) (*logStore, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:        time.Second, // the directory is locked by then
		NoFreelistSync: true,        // found again on open; saves a write per append
		FreelistType:   bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, fmt.Errorf("raftkv: open %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketStable} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raftkv: initialise %s: %w", path, err), db.Close())
	}
	return &logStore{db: db}, nil
}

func (s *logStore) close() error { return s.db.Close() }

// FirstIndex implements raft.LogStore.
func (s *logStore) FirstIndex() (uint64, error) { return s.edge((*bbolt.Cursor).First) }

// LastIndex implements raft.LogStore.
func (s *logStore) LastIndex() (uint64, error) { return s.edge((*bbolt.Cursor).Last) }

func (s *logStore) edge(to func(*bbolt.Cursor) (k, v []byte)) (index uint64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		index = edgeOf(tx.Bucket(bucketLog), to)
		return nil
	})
	return index, err
}

func edgeOf(log *bbolt.Bucket, to func(*bbolt.Cursor) (k, v []byte)) uint64 {
	k, _ := to(log.Cursor())
	if k == nil {
		return 0
	}
	return binary.BigEndian.Uint64(k)
}

// GetLog implements raft.LogStore: raft.ErrLogNotFound if there is no such entry.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketLog).Get(indexKey(index))
		if raw == nil {
			return raft.ErrLogNotFound
		}
		if err := decodeEntry(raw, l); err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		if l.Index != index {
			return fmt.Errorf("%w: entry %d says that it is %d", errLogDamaged, index, l.Index)
		}
		return nil
	})
}

// StoreLog implements raft.LogStore.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: all of them or none. Entries that do not
// follow on the last one follow on a snapshot; what was there is then dropped
// in the same transaction.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketLog)
		next := edgeOf(bucket, (*bbolt.Cursor).Last) + 1
		for _, l := range logs {
			switch {
			case l.Index > next && next > 1:
				if err := tx.DeleteBucket(bucketLog); err != nil {
					return err
				}
				var err error
				if bucket, err = tx.CreateBucket(bucketLog); err != nil {
					return err
				}
			case l.Index < next && next > 1:
				return fmt.Errorf("raftkv: entry %d is appended to a log that ends at %d", l.Index, next-1)
			}
			bucket.FillPercent = 0.9 // it grows at the end only
			if err := bucket.Put(indexKey(l.Index), encodeEntry(l)); err != nil {
				return err
			}
			next = l.Index + 1
		}
		return nil
	})
}

// DeleteRange implements raft.LogStore.
func (s *logStore) DeleteRange(first, last uint64) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketLog)
		// Without a cursor: bbolt's may skip an entry when the one before it is deleted. The log has no gaps.
		first = max(first, edgeOf(bucket, (*bbolt.Cursor).First))
		last = min(last, edgeOf(bucket, (*bbolt.Cursor).Last))
		for i := first; i <= last; i++ {
			if err := bucket.Delete(indexKey(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set implements raft.StableStore.
func (s *logStore) Set(key, val []byte) error {
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketStable).Put(key, val) })
}

// Get implements raft.StableStore.
func (s *logStore) Get(key []byte) (val []byte, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		val = append(val, tx.Bucket(bucketStable).Get(key)...)
		return nil
	})
	return val, err
}

// SetUint64 implements raft.StableStore.
func (s *logStore) SetUint64(key []byte, val uint64) error { return s.Set(key, indexKey(val)) }

// GetUint64 implements raft.StableStore.
func (s *logStore) GetUint64(key []byte) (uint64, error) {
	raw, err := s.Get(key)
	switch {
	case err != nil || len(raw) == 0:
		return 0, err
	case len(raw) != 8:
		return 0, fmt.Errorf("%w: %q is no number", errLogDamaged, key)
	}
	return binary.BigEndian.Uint64(raw), nil
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func encodeEntry(l *raft.Log) []byte {
	b := make([]byte, entryHead, entryHead+len(l.Extensions)+len(l.Data))
	b[4], b[5] = entryVersion, byte(l.Type)
	binary.LittleEndian.PutUint64(b[6:], l.Index)
	binary.LittleEndian.PutUint64(b[14:], l.Term)
	if !l.AppendedAt.IsZero() {
		binary.LittleEndian.PutUint64(b[22:], uint64(l.AppendedAt.UnixNano()))
	}
	binary.LittleEndian.PutUint32(b[30:], uint32(len(l.Extensions)))
	b = append(append(b, l.Extensions...), l.Data...)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

// decodeEntry copies what it keeps of b.
func decodeEntry(b []byte, l *raft.Log) error {
	if len(b) < entryHead || crc32.Checksum(b[4:], castagnoli) != binary.LittleEndian.Uint32(b) {
		return fmt.Errorf("%w: checksum mismatch", errLogDamaged)
	}
	if b[4] != entryVersion {
		return fmt.Errorf("raftkv: log entry has format %d, this version knows %d", b[4], entryVersion)
	}
	extensions := uint64(binary.LittleEndian.Uint32(b[30:]))
	if extensions > uint64(len(b)-entryHead) {
		return fmt.Errorf("%w: extensions of %d bytes", errLogDamaged, extensions)
	}
	*l = raft.Log{
		Type:       raft.LogType(b[5]),
		Index:      binary.LittleEndian.Uint64(b[6:]),
		Term:       binary.LittleEndian.Uint64(b[14:]),
		Extensions: append([]byte(nil), b[entryHead:entryHead+extensions]...),
		Data:       append([]byte(nil), b[entryHead+extensions:]...),
	}
	if at := binary.LittleEndian.Uint64(b[22:]); at != 0 {
		l.AppendedAt = time.Unix(0, int64(at))
	}
	return nil
}
