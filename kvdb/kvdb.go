// Package kvdb defines the small consistent store in which the cluster's shared
// state stands: who may write which volume, the cluster domains, the nodes.
//
// Three stores implement it: etcdkv (an etcd cluster), raftkv (the embedded
// hashicorp/raft) and memkv (in memory, the reference). Package kvdbtest is the
// suite that each passes.
package kvdb

import (
	"context"
	"errors"
	"time"
)

// Revision is the store-wide version after a change; it only grows.
type Revision int64

// LeaseID names a lease; 0 is none.
type LeaseID int64

// KV is one key with its value.
type KV struct {
	Key     string
	Value   []byte
	Created Revision // of the change that created the key
	Mod     Revision // of the last change of the key
	Lease   LeaseID
}

// Store is a small, linearizable key-value store. All methods may be called
// concurrently. Values are at most MaxValue bytes.
//
// An error other than the ones named means that the outcome of a Txn is
// unknown: it may have taken effect, or may still do so.
type Store interface {
	// Get returns the key's current value (a linearizable read), or ErrNotFound.
	Get(ctx context.Context, key string) (KV, error)

	// List returns every key that starts with prefix, ordered by key, and the revision at
	// which that was true (linearizable).
	List(ctx context.Context, prefix string) ([]KV, Revision, error)

	// Txn evaluates all comparisons and applies Then or Else, atomically. A lost comparison
	// is no error: Succeeded is false.
	Txn(ctx context.Context, t Txn) (TxnResult, error)

	// Watch sends every change under prefix with a revision greater than after, in order,
	// without gaps. The last event before the channel closes has Err set: ErrCompacted means List again
	// and watch from there; ctx.Err() means that the caller ended it; ErrClosed that the store was closed.
	// A store that reconnects does so inside, without ending the watch.
	Watch(ctx context.Context, prefix string, after Revision) <-chan Event

	// Grant makes a lease that is kept alive in the background until it is revoked, the store is
	// closed, or the store cannot be reached for ttl. Keys written with it are deleted when it ends.
	// A lease is a hint of liveness and never a licence to write (see protocol.md D2).
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)

	// Close releases the store and ends its leases' renewal (it does not revoke them) and its watches. Twice is nil.
	Close() error
}

// MaxValue is the largest value, in bytes.
const MaxValue = 512 << 10

// Lease is a time-bounded presence in the store.
type Lease interface {
	ID() LeaseID
	// Expires is when the lease ends unless renewed, counted from before the last successful renewal was sent.
	Expires() time.Time
	// Done is closed when the lease is known to have ended.
	Done() <-chan struct{}
	// Revoke ends the lease and deletes its keys.
	Revoke(ctx context.Context) error
}

// Txn is one atomic transaction: if all of If hold then Then, else Else. At most
// MaxTxnOps operations in each part. No key is written twice in one part.
type Txn struct {
	If   []Cmp
	Then []Op
	Else []Op
}

// MaxTxnOps bounds each part of a Txn (etcd's default limit).
const MaxTxnOps = 128

// CmpTarget is what a Cmp compares.
type CmpTarget uint8

// Comparison targets.
const (
	CmpMod    CmpTarget = iota + 1 // Mod == Cmp.Revision; 0 means that the key is absent
	CmpValue                       // the key exists and its value equals Cmp.Value
	CmpExists                      // the key exists
	CmpAbsent                      // the key does not exist
)

// Cmp is one comparison, for equality.
type Cmp struct {
	Key      string
	Target   CmpTarget
	Revision Revision
	Value    []byte
}

// OpKind is what an Op does.
type OpKind uint8

// Operations.
const (
	OpGet    OpKind = iota + 1 // the key's KV, if it exists
	OpPut                      // Value, attached to Lease if that is not 0
	OpDelete                   // absent is no error
)

// Op is one operation of a Txn.
type Op struct {
	Kind  OpKind
	Key   string
	Value []byte
	Lease LeaseID
}

// TxnResult is the outcome of a Txn.
type TxnResult struct {
	Succeeded bool
	Revision  Revision
	// Gets has one element for each OpGet of the part that ran, in order: nil if the key is absent.
	Gets []*KV
}

// EventType is what happened to a key.
type EventType uint8

// Event types.
const (
	EventPut EventType = iota + 1
	EventDelete
)

// Event is one change of one key, or, with Err set, the end of a watch.
type Event struct {
	Type EventType
	KV   KV // for EventDelete: Key and Mod only
	Err  error
}

// Errors of every store. Test with errors.Is.
var (
	ErrNotFound    = errors.New("kvdb: key not found")
	ErrConflict    = errors.New("kvdb: another change came first") // from the helpers over Txn
	ErrCompacted   = errors.New("kvdb: revision is no longer kept")
	ErrNoLeader    = errors.New("kvdb: no leader")          // definite: nothing was changed
	ErrUnavailable = errors.New("kvdb: store out of reach") // outcome unknown
	ErrLeaseGone   = errors.New("kvdb: lease not found")
	ErrInvalid     = errors.New("kvdb: invalid request") // definite
	ErrClosed      = errors.New("kvdb: store is closed")
)
