package kvstate

import (
	"fmt"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix"

	"github.com/tandem-storage/tandem/kvdb"
)

// Snapshot is the state at one moment, without the history. It stays as it is
// while the Machine goes on.
type Snapshot struct {
	Revision kvdb.Revision
	Leases   map[kvdb.LeaseID]time.Duration
	keys     *iradix.Tree
}

// Snapshot captures the state; it costs one pointer and the leases.
func (m *Machine) Snapshot() Snapshot {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := Snapshot{Revision: m.rev, Leases: make(map[kvdb.LeaseID]time.Duration, len(m.leases)), keys: m.keys}
	for id, l := range m.leases {
		s.Leases[id] = l.ttl
	}
	return s
}

// Keys calls f for every key, in order, until f fails. The Value is not f's to keep or change.
func (s Snapshot) Keys(f func(kvdb.KV) error) error {
	var err error
	s.keys.Root().Walk(func(_ []byte, v any) bool {
		err = f(v.(kvdb.KV))
		return err != nil
	})
	return err
}

// Restore replaces the whole state. Watches of changes before rev end with
// ErrCompacted, because what led there is not known.
func (m *Machine) Restore(rev kvdb.Revision, leases map[kvdb.LeaseID]time.Duration, kvs []kvdb.KV) error {
	fresh := make(map[kvdb.LeaseID]*lease, len(leases))
	for id, ttl := range leases {
		fresh[id] = &lease{ttl: ttl, keys: make(map[string]struct{})}
	}
	txn := iradix.New().Txn()
	for _, kv := range kvs {
		if kv.Mod > rev {
			return fmt.Errorf("kvstate: snapshot at revision %d has key %q of revision %d", rev, kv.Key, kv.Mod)
		}
		if kv.Lease != 0 {
			l := fresh[kv.Lease]
			if l == nil {
				return fmt.Errorf("kvstate: snapshot has key %q of lease %d, which it lacks", kv.Key, kv.Lease)
			}
			l.keys[kv.Key] = struct{}{}
		}
		txn.Insert([]byte(kv.Key), kv)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev, m.keys, m.leases = rev, txn.Commit(), fresh
	m.history = history{keep: m.history.keep, dropped: rev}
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

// Len is the number of keys.
func (s Snapshot) Len() uint64 { return uint64(s.keys.Len()) }
