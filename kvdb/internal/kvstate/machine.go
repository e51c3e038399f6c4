// Package kvstate is the state machine behind the stores of our own: keys,
// revisions, leases and a bounded history of changes.
//
// It reads no clock and starts no goroutine on its own: the same changes in the
// same order give the same state on every member. When a lease ends is decided
// outside, by Deadlines under one owner's clock, and enters as a change.
package kvstate

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix"

	"github.com/tandem-storage/tandem/kvdb"
)

// Machine is the state of one store. Txn, Grant and EndLease are the changes;
// they are ordered by the caller, reads may run beside them. Values handed in
// belong to the Machine; values handed out are copies.
type Machine struct {
	mu      sync.RWMutex
	rev     kvdb.Revision
	keys    *iradix.Tree // string -> kvdb.KV; persistent, so a snapshot is a pointer
	leases  map[kvdb.LeaseID]*lease
	history history
	changed chan struct{} // closed and replaced after every change of a key
}

type lease struct {
	ttl  time.Duration
	keys map[string]struct{}
}

// New returns an empty Machine at revision 1 that keeps at least the last
// keepEvents changes of keys for watches.
func New(keepEvents int) *Machine {
	return &Machine{
		rev:     1,
		keys:    iradix.New(),
		leases:  make(map[kvdb.LeaseID]*lease),
		history: history{keep: keepEvents},
		changed: make(chan struct{}),
	}
}

// Txn runs t, which has passed Check. Its changes share one new revision; a part
// that changes nothing takes none. ErrLeaseGone: a put of the part that was to
// run names an absent lease, and nothing was changed.
func (m *Machine) Txn(t kvdb.Txn) (kvdb.TxnResult, error) {
	if t.ReadOnly() {
		m.mu.RLock()
		defer m.mu.RUnlock()
	} else {
		m.mu.Lock()
		defer m.mu.Unlock()
	}

	res := kvdb.TxnResult{Succeeded: true}
	for _, c := range t.If {
		if !m.holdsLocked(c) {
			res.Succeeded = false
			break
		}
	}
	part := t.Then
	if !res.Succeeded {
		part = t.Else
	}
	for _, op := range part {
		if op.Kind == kvdb.OpPut && op.Lease != 0 && m.leases[op.Lease] == nil {
			return kvdb.TxnResult{}, fmt.Errorf("%w: %d, in a put of %q", kvdb.ErrLeaseGone, op.Lease, op.Key)
		}
	}

	w := m.beginLocked()
	for _, op := range part {
		switch op.Kind {
		case kvdb.OpGet:
			var got *kvdb.KV
			if kv, ok := w.get(op.Key); ok {
				kv = kv.Clone()
				got = &kv
			}
			res.Gets = append(res.Gets, got)
		case kvdb.OpPut:
			w.put(op.Key, op.Value, op.Lease)
		case kvdb.OpDelete:
			w.delete(op.Key)
		}
	}
	w.commit()
	res.Revision = m.rev
	return res, nil
}

func (m *Machine) holdsLocked(c kvdb.Cmp) bool {
	kv, exists := lookup(m.keys.Root(), c.Key)
	switch c.Target {
	case kvdb.CmpMod:
		return kv.Mod == c.Revision
	case kvdb.CmpValue:
		return exists && string(kv.Value) == string(c.Value)
	case kvdb.CmpExists:
		return exists
	case kvdb.CmpAbsent:
		return !exists
	}
	return false
}

// List returns the keys under prefix, in order, and the revision at which they were so.
func (m *Machine) List(prefix string) ([]kvdb.KV, kvdb.Revision) {
	m.mu.RLock()
	root, rev := m.keys.Root(), m.rev
	m.mu.RUnlock()

	var kvs []kvdb.KV
	root.WalkPrefix([]byte(prefix), func(_ []byte, v any) bool {
		kvs = append(kvs, v.(kvdb.KV).Clone())
		return false
	})
	return kvs, rev
}

// Revision is that of the last change.
func (m *Machine) Revision() kvdb.Revision {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.rev
}

// Grant makes the lease id. Granting it again with the same ttl changes nothing,
// so that a request may be repeated.
func (m *Machine) Grant(id kvdb.LeaseID, ttl time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.leases[id]; l != nil {
		if l.ttl == ttl {
			return nil
		}
		return fmt.Errorf("%w: lease %d exists with another duration", kvdb.ErrInvalid, id)
	}
	m.leases[id] = &lease{ttl: ttl, keys: make(map[string]struct{})}
	return nil
}

// EndLease removes the lease and, in one revision, its keys. ErrLeaseGone if it does not exist.
func (m *Machine) EndLease(id kvdb.LeaseID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.leases[id]
	if l == nil {
		return fmt.Errorf("%w: %d", kvdb.ErrLeaseGone, id)
	}
	w := m.beginLocked()
	for _, key := range slices.Sorted(maps.Keys(l.keys)) {
		w.delete(key)
	}
	w.commit()
	delete(m.leases, id)
	return nil
}

// Leases returns every lease with its duration.
func (m *Machine) Leases() map[kvdb.LeaseID]time.Duration {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make(map[kvdb.LeaseID]time.Duration, len(m.leases))
	for id, l := range m.leases {
		out[id] = l.ttl
	}
	return out
}

// LeaseTTL returns the lease's duration, and whether it exists.
func (m *Machine) LeaseTTL(id kvdb.LeaseID) (time.Duration, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	l := m.leases[id]
	if l == nil {
		return 0, false
	}
	return l.ttl, true
}

// Compact forgets the history up to and including rev: a watch from before it
// ends with ErrCompacted.
func (m *Machine) Compact(rev kvdb.Revision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history.dropThrough(min(rev, m.rev))
}

func lookup(root *iradix.Node, key string) (kvdb.KV, bool) {
	v, ok := root.Get([]byte(key))
	if !ok {
		return kvdb.KV{}, false
	}
	return v.(kvdb.KV), true
}

// change collects the writes of one revision. Whoever begins one holds mu.
type change struct {
	m      *Machine
	rev    kvdb.Revision
	txn    *iradix.Txn
	events []kvdb.Event
}

func (m *Machine) beginLocked() *change {
	return &change{m: m, rev: m.rev + 1, txn: m.keys.Txn()}
}

func (w *change) get(key string) (kvdb.KV, bool) { return lookup(w.txn.Root(), key) }

func (w *change) put(key string, value []byte, id kvdb.LeaseID) {
	kv := kvdb.KV{Key: key, Value: value, Created: w.rev, Mod: w.rev, Lease: id}
	if old, ok := w.get(key); ok {
		kv.Created = old.Created
		w.detach(old)
	}
	if id != 0 {
		w.m.leases[id].keys[key] = struct{}{}
	}
	w.txn.Insert([]byte(key), kv)
	w.events = append(w.events, kvdb.Event{Type: kvdb.EventPut, KV: kv})
}

func (w *change) delete(key string) {
	old, ok := w.get(key)
	if !ok {
		return
	}
	w.detach(old)
	w.txn.Delete([]byte(key))
	w.events = append(w.events, kvdb.Event{Type: kvdb.EventDelete, KV: kvdb.KV{Key: key, Mod: w.rev}})
}

func (w *change) detach(kv kvdb.KV) {
	if l := w.m.leases[kv.Lease]; l != nil {
		delete(l.keys, kv.Key)
	}
}

func (w *change) commit() {
	if len(w.events) == 0 {
		return
	}
	w.m.rev = w.rev
	w.m.keys = w.txn.Commit()
	w.m.history.add(w.events)
	close(w.m.changed)
	w.m.changed = make(chan struct{})
}
